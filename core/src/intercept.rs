//! What a hypervisor may intercept: one list for both vendors. Instruction code reports "this is about to happen"
//! at the point of the manual's priority order; the virtualization seam decides whether it exits.

/// An interceptable instruction or condition, with what the exit must report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Intercept {
    Cpuid,
    Getsec,
    Hlt,
    Invd,
    Wbinvd,
    Wbnoinvd,
    /// Linear address.
    Invlpg(u64),
    /// Operand's linear address and the number of the type register.
    Invpcid {
        descriptor: u64,
        register: u8,
    },
    Rdpmc,
    Rdtsc,
    Rdtscp,
    Rsm,
    Pause,
    Monitor,
    /// Whether the address-range monitor is armed.
    Mwait {
        armed: bool,
    },
    Umonitor,
    Umwait {
        register: u8,
    },
    Tpause {
        register: u8,
    },
    Xsetbv,
    /// XSS-bitmap of the components requested.
    Xsaves(u64),
    Xrstors(u64),
    /// Destination register, operand size in bytes.
    Rdrand {
        register: u8,
        size: u8,
    },
    Rdseed {
        register: u8,
        size: u8,
    },
    Rdmsr(u32),
    Wrmsr {
        msr: u32,
        value: u64,
    },
    ReadCr {
        cr: u8,
        register: u8,
    },
    /// SMSW.
    Smsw,
    WriteCr {
        cr: u8,
        register: u8,
        value: u64,
    },
    Clts,
    /// Source value; linear address if the source is memory.
    Lmsw {
        source: u16,
        address: Option<u64>,
        register: u8,
    },
    ReadDr {
        dr: u8,
        register: u8,
    },
    WriteDr {
        dr: u8,
        register: u8,
        value: u64,
    },
    /// SGDT, SIDT, LGDT, LIDT (0–3) with the operand as [`crate::intercept::MemoryOperand`] says.
    Gdtr {
        load: bool,
        idt: bool,
        operand: MemoryOperand,
    },
    /// SLDT, STR, LLDT, LTR.
    Ldtr {
        load: bool,
        task: bool,
        operand: MemoryOperand,
    },
    /// IN, OUT, INS, OUTS.
    Io {
        port: u16,
        size: u8,
        input: bool,
        string: bool,
        rep: bool,
        immediate: bool,
        address: u64,
        segment: u8,
        address_size: u8,
    },
    /// PUSHF, POPF, IRET, INT n (SVM only).
    Pushf,
    Popf,
    Iret,
    SoftwareInterrupt(u8),
    Icebp,
    Rdpru,
    Invlpga,
    Invlpgb,
    /// INVLPGB with operands, or where, it is not allowed.
    IllegalInvlpgb,
    Tlbsync,
    Mcommit,
    Skinit,
    /// VMX instructions and SVM instructions used from inside a guest.
    VmxInstruction(u8),
    SvmInstruction(u8),
    Vmcall,
    Vmmcall,
    FerrFreeze,
}

/// Memory or register operand in the shape that VM-exit instruction information needs (SDM vol. 3, Format of the
/// VM-Exit Instruction-Information Field).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemoryOperand {
    /// `None`: memory.
    pub register: Option<u8>,
    pub scale: u8,
    /// log2(bytes) − 1 of the address size: 0, 1, 2.
    pub address_size: u8,
    pub segment: u8,
    pub index: Option<u8>,
    pub base: Option<u8>,
    pub displacement: i64,
    /// Operand size in bytes.
    pub operand_size: u8,
    /// The other register of a two-operand instruction.
    pub register2: u8,
    /// The linear address of a memory operand.
    pub linear: u64,
}

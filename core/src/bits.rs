//! Control, debug and flag registers (SDM vol. 3, Control Registers; Debug Registers; vol. 1, EFLAGS Register;
//! APM vol. 2, System-Control Registers).

use bitflags::bitflags;

bitflags! {
    /// CR0.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Cr0: u64 {
        const PE = 1 << 0;
        const MP = 1 << 1;
        const EM = 1 << 2;
        const TS = 1 << 3;
        const ET = 1 << 4;
        const NE = 1 << 5;
        const WP = 1 << 16;
        const AM = 1 << 18;
        const NW = 1 << 29;
        const CD = 1 << 30;
        const PG = 1 << 31;
    }

    /// CR4.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Cr4: u64 {
        const VME = 1 << 0;
        const PVI = 1 << 1;
        const TSD = 1 << 2;
        const DE = 1 << 3;
        const PSE = 1 << 4;
        const PAE = 1 << 5;
        const MCE = 1 << 6;
        const PGE = 1 << 7;
        const PCE = 1 << 8;
        const OSFXSR = 1 << 9;
        const OSXMMEXCPT = 1 << 10;
        const UMIP = 1 << 11;
        const LA57 = 1 << 12;
        const VMXE = 1 << 13;
        const SMXE = 1 << 14;
        const FSGSBASE = 1 << 16;
        const PCIDE = 1 << 17;
        const OSXSAVE = 1 << 18;
        const KL = 1 << 19;
        const SMEP = 1 << 20;
        const SMAP = 1 << 21;
        const PKE = 1 << 22;
        const CET = 1 << 23;
        const PKS = 1 << 24;
    }

    /// IA32_EFER.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Efer: u64 {
        const SCE = 1 << 0;
        const LME = 1 << 8;
        const LMA = 1 << 10;
        const NXE = 1 << 11;
        /// AMD: secure virtual machine enable.
        const SVME = 1 << 12;
        /// AMD: long mode segment limit enable.
        const LMSLE = 1 << 13;
        /// AMD: fast FXSAVE/FXRSTOR.
        const FFXSR = 1 << 14;
        /// AMD: translation cache extension.
        const TCE = 1 << 15;
        /// AMD: MCOMMIT is no #UD.
        const MCOMMIT = 1 << 17;
        /// AMD: automatic IBRS.
        const AUTOIBRS = 1 << 21;
    }

    /// RFLAGS.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Rflags: u64 {
        const CF = 1 << 0;
        /// Bit 1 reads as one.
        const FIXED = 1 << 1;
        const PF = 1 << 2;
        const AF = 1 << 4;
        const ZF = 1 << 6;
        const SF = 1 << 7;
        const TF = 1 << 8;
        const IF = 1 << 9;
        const DF = 1 << 10;
        const OF = 1 << 11;
        const IOPL = 3 << 12;
        const NT = 1 << 14;
        const RF = 1 << 16;
        const VM = 1 << 17;
        const AC = 1 << 18;
        const VIF = 1 << 19;
        const VIP = 1 << 20;
        const ID = 1 << 21;
        /// The six status flags.
        const STATUS = 0x8d5;
    }

    /// DR6. Bits 11:4 and 31:16 read as one (RTM, bit 16, is inverted; bus lock, bit 11, likewise).
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Dr6: u64 {
        const B0 = 1 << 0;
        const B1 = 1 << 1;
        const B2 = 1 << 2;
        const B3 = 1 << 3;
        /// In DR6: no bus lock. In pending debug exceptions, and in what a debug exception carries with it: a bus lock.
        const BLD = 1 << 11;
        const BD = 1 << 13;
        const BS = 1 << 14;
        const BT = 1 << 15;
        const FIXED = 0xffff_0ff0;
    }

    /// DR7. Bit 10 reads as one.
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
    pub struct Dr7: u64 {
        /// Local enables are bits 0, 2, 4, 6; global enables bits 1, 3, 5, 7.
        const ENABLES = 0xff;
        const LE = 1 << 8;
        const GE = 1 << 9;
        const FIXED = 1 << 10;
        const RTM = 1 << 11;
        const GD = 1 << 13;
    }
}

/// IA32_DEBUGCTL: trap on bus locks outside of CPL 0.
pub const DEBUGCTL_BUS_LOCK_DETECT: u64 = 1 << 2;

/// MEMORY_CTRL: split locks raise #AC. Its number in IA32_CORE_CAPABILITIES says that it can be set.
pub const SPLIT_LOCK_DISABLE: u64 = 1 << 29;
pub const SPLIT_LOCK_DISABLE_SUPPORTED: u64 = 1 << 5;

/// CR0 bits that are defined; the others must be written as zero in 64-bit mode (high half) or are ignored.
pub const CR0_DEFINED: u64 = 0xe005_003f;

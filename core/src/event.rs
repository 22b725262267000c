//! Exceptions, interrupts and how they are named (SDM vol. 3, Interrupt and Exception Handling).

/// Exception and interrupt vectors with architectural meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector;

#[allow(non_upper_case_globals)]
impl Vector {
    pub const DE: u8 = 0;
    pub const DB: u8 = 1;
    pub const NMI: u8 = 2;
    pub const BP: u8 = 3;
    pub const OF: u8 = 4;
    pub const BR: u8 = 5;
    pub const UD: u8 = 6;
    pub const NM: u8 = 7;
    pub const DF: u8 = 8;
    pub const TS: u8 = 10;
    pub const NP: u8 = 11;
    pub const SS: u8 = 12;
    pub const GP: u8 = 13;
    pub const PF: u8 = 14;
    pub const MF: u8 = 16;
    pub const AC: u8 = 17;
    pub const MC: u8 = 18;
    pub const XM: u8 = 19;
    pub const VE: u8 = 20;
    pub const CP: u8 = 21;
    pub const SX: u8 = 30;

    /// Name such as `#GP`, for messages.
    pub fn name(vector: u8) -> &'static str {
        match vector {
            0 => "#DE",
            1 => "#DB",
            2 => "NMI",
            3 => "#BP",
            4 => "#OF",
            5 => "#BR",
            6 => "#UD",
            7 => "#NM",
            8 => "#DF",
            10 => "#TS",
            11 => "#NP",
            12 => "#SS",
            13 => "#GP",
            14 => "#PF",
            16 => "#MF",
            17 => "#AC",
            18 => "#MC",
            19 => "#XM",
            20 => "#VE",
            21 => "#CP",
            30 => "#SX",
            _ => "INT",
        }
    }
}

/// A fault, trap or abort raised by an instruction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    pub vector: u8,
    pub error_code: Option<u32>,
    /// #PF: the linear address for CR2. #DB: the DR6 bits to set (the payload of a pending debug exception).
    pub payload: u64,
}

impl Exception {
    pub const fn new(vector: u8) -> Exception {
        Exception { vector, error_code: None, payload: 0 }
    }
    pub const fn with_code(vector: u8, code: u32) -> Exception {
        Exception { vector, error_code: Some(code), payload: 0 }
    }
    pub const fn page_fault(code: u32, address: u64) -> Exception {
        Exception { vector: Vector::PF, error_code: Some(code), payload: address }
    }
    pub const UD: Exception = Exception::new(Vector::UD);
    pub const NM: Exception = Exception::new(Vector::NM);
    pub const GP0: Exception = Exception::with_code(Vector::GP, 0);
    pub const SS0: Exception = Exception::with_code(Vector::SS, 0);
}

/// How an event reached the IDT. The numbers are the interruption types of VMX (SDM vol. 3, VM-Entry
/// Controls for Event Injection); SVM's EVENTINJ uses 0, 2, 3, 4 with the same meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum EventKind {
    External = 0,
    Nmi = 2,
    HardwareException = 3,
    /// INT n.
    Software = 4,
    /// INT1 (ICEBP).
    PrivilegedSoftwareException = 5,
    /// INT3 and INTO.
    SoftwareException = 6,
}

/// Something to be delivered through the IDT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub kind: EventKind,
    pub vector: u8,
    pub error_code: Option<u32>,
    /// CR2 for #PF, DR6 bits for #DB; see [`Exception::payload`].
    pub payload: u64,
    /// For software kinds: the instruction's length, i.e. how far past the current RIP the return address is.
    pub instruction_length: u8,
}

impl From<Exception> for Event {
    fn from(e: Exception) -> Event {
        Event {
            kind: EventKind::HardwareException,
            vector: e.vector,
            error_code: e.error_code,
            payload: e.payload,
            instruction_length: 0,
        }
    }
}

/// Page-fault error-code bits (SDM vol. 3, Page-Fault Exceptions).
pub mod pf {
    pub const P: u32 = 1 << 0;
    pub const W: u32 = 1 << 1;
    pub const U: u32 = 1 << 2;
    pub const RSVD: u32 = 1 << 3;
    pub const I: u32 = 1 << 4;
    pub const PK: u32 = 1 << 5;
    pub const SS: u32 = 1 << 6;
}

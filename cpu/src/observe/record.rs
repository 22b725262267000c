//! What the trace is made of: records of one size.

/// What a record tells. The meaning of its numbers:
///
/// | kind | `code` | `a` | `b` | `c` |
/// |---|---|---|---|---|
/// | `Exit` | exit reason or exit code | qualification or EXITINFO1 | guest-physical address or EXITINFO2 | interruption information or EXITINTINFO |
/// | `Entry` | 0 VMLAUNCH, 1 VMRESUME, 2 VMRUN | RIP of that instruction | event injected | |
/// | `EntryFailure` | exit reason, exit code or VM-instruction error | RIP of the instruction | | |
/// | `Vmread`, `Vmwrite` | encoding, or offset in the VMCB | value | | |
/// | `Interrupt` | vector | type (of VMX's interruption information) | | |
/// | `Exception` | vector | error code | payload: CR2 or DR6 bits | 1: there is an error code |
/// | `Rdmsr`, `Wrmsr` | MSR | value | | |
/// | `In`, `Out` | port | value | bytes | |
/// | `NestedFault` | guest-physical address | linear address | 1 write, 2 fetch, 4 EPT misconfiguration | |
/// | `Flush` | 0 INVEPT, 1 INVVPID, 2 INVLPGA, 3 TLB_CONTROL | type | operand | |
/// | `Code` | bytes | the instruction's first 8 bytes | the next 8 | |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    Exit,
    Entry,
    EntryFailure,
    Vmread,
    Vmwrite,
    Interrupt,
    Exception,
    Rdmsr,
    Wrmsr,
    In,
    Out,
    NestedFault,
    Flush,
    /// Bytes of an instruction that a later record names.
    Code,
}

impl Kind {
    /// Name, for traces.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Exit => "exit",
            Kind::Entry => "entry",
            Kind::EntryFailure => "entry-failure",
            Kind::Vmread => "vmread",
            Kind::Vmwrite => "vmwrite",
            Kind::Interrupt => "interrupt",
            Kind::Exception => "exception",
            Kind::Rdmsr => "rdmsr",
            Kind::Wrmsr => "wrmsr",
            Kind::In => "in",
            Kind::Out => "out",
            Kind::NestedFault => "nested-fault",
            Kind::Flush => "flush",
            Kind::Code => "code",
        }
    }
}

/// "No VMCS or VMCB".
pub const NO_STRUCTURE: u64 = u64::MAX;

/// One thing that happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// Virtual time: nanoseconds, one a retired instruction.
    pub now: u64,
    /// RIP of the level that the record is about.
    pub rip: u64,
    /// Address of the VMCS or VMCB concerned; all ones: none.
    pub structure: u64,
    pub code: u64,
    pub a: u64,
    pub b: u64,
    pub c: u64,
    pub kind: Kind,
    pub cpu: u8,
    /// Level that ran when it happened (for entries: the level entered).
    pub level: u8,
    pub amd: bool,
}

/// Which records are kept.
#[derive(Clone, Debug)]
pub struct Filter {
    pub level: Option<u8>,
    /// Address of a VMCS or VMCB.
    pub structure: Option<u64>,
    /// Exit reasons or codes; empty: all. Only exits and entry failures have one.
    pub reasons: Vec<u64>,
    /// First and last RIP.
    pub rip: Option<(u64, u64)>,
    /// Records still to come.
    pub left: u64,
    /// Virtual time before which nothing is kept.
    pub after: u64,
}

impl Default for Filter {
    fn default() -> Filter {
        Filter { level: None, structure: None, reasons: Vec::new(), rip: None, left: u64::MAX, after: 0 }
    }
}

impl Filter {
    /// Whether to keep a record; counts it if so.
    pub fn admits(&mut self, r: &Record) -> bool {
        let structure = r.kind == Kind::Code || self.structure.is_none_or(|s| s == r.structure);
        let reason =
            self.reasons.is_empty() || !matches!(r.kind, Kind::Exit | Kind::EntryFailure) || self.reasons.contains(&r.code);
        let keep = r.now >= self.after
            && self.left > 0
            && self.level.is_none_or(|l| l == r.level)
            && structure
            && reason
            && self.rip.is_none_or(|(first, last)| (first..=last).contains(&r.rip));
        if keep && r.kind != Kind::Code {
            self.left -= 1;
        }
        keep
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_narrow_and_count() {
        let exit = |rip, code| Record {
            now: 5,
            rip,
            structure: 0x1000,
            code,
            a: 0,
            b: 0,
            c: 0,
            kind: Kind::Exit,
            cpu: 0,
            level: 2,
            amd: false,
        };
        let mut f = Filter { reasons: vec![10], rip: Some((0x100, 0x1ff)), left: 2, ..Filter::default() };
        assert!(f.admits(&exit(0x100, 10)));
        assert!(!f.admits(&exit(0x200, 10)) && !f.admits(&exit(0x100, 12)));
        assert!(f.admits(&exit(0x1ff, 10)));
        assert!(!f.admits(&exit(0x100, 10)), "the count is used up");
        assert!(!Filter { after: 6, ..Filter::default() }.admits(&exit(0, 0)));
        assert!(!Filter { level: Some(1), ..Filter::default() }.admits(&exit(0, 0)));
        assert!(!Filter { structure: Some(0x2000), ..Filter::default() }.admits(&exit(0, 0)));
    }
}

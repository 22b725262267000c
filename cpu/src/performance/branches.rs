//! Branches, while a counter counts them. Blocks are then decoded anew ([`Mode::COUNTED`]), with an op of its own before each branch and
//! one wherever a branch may lead: so code that is not watched has nothing to do with it.
//!
//! The machine predicts nothing. What mispredictions count is what a small predictor would have got wrong that starts empty whenever
//! counting starts and sees the same branches: the same run gives the same count.

use iced_x86::{FlowControl, Instruction};

use crate::cpu::Cpu;
use crate::decode::{Builder, Mode};
use crate::dispatch::next;
use crate::hot;
use crate::op::{Flow, Op, OpRef};

/// How the target of a branch is predicted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
enum Kind {
    /// To one place, known to the decoder.
    Direct,
    Conditional,
    Indirect,
    Call,
    IndirectCall,
    Return,
    /// Not predicted, and not counted as mispredicted.
    Far,
}

const KINDS: [Kind; 7] =
    [Kind::Direct, Kind::Conditional, Kind::Indirect, Kind::Call, Kind::IndirectCall, Kind::Return, Kind::Far];

fn kind(insn: &Instruction) -> Option<Kind> {
    let far = insn.is_jmp_far()
        || insn.is_jmp_far_indirect()
        || insn.is_call_far()
        || insn.is_call_far_indirect()
        || matches!(insn.op_code().mnemonic(), iced_x86::Mnemonic::Retf);
    Some(match insn.flow_control() {
        // Undefined instructions and halts are none.
        FlowControl::Next | FlowControl::Exception => return syscall(insn),
        _ if far => Kind::Far,
        FlowControl::UnconditionalBranch => Kind::Direct,
        FlowControl::ConditionalBranch => Kind::Conditional,
        FlowControl::IndirectBranch => Kind::Indirect,
        FlowControl::IndirectCall => Kind::IndirectCall,
        FlowControl::Call => match syscall(insn) {
            Some(far) => far,
            None if insn.is_call_near() => Kind::Call,
            None => return None,
        },
        FlowControl::Return if insn.op_code().mnemonic() == iced_x86::Mnemonic::Ret => Kind::Return,
        FlowControl::Return => return returns(insn),
        FlowControl::Interrupt => return interrupts(insn),
        FlowControl::XbeginXabortXend => return None,
    })
}

/// SYSCALL and SYSENTER, which iced takes for calls.
fn syscall(insn: &Instruction) -> Option<Kind> {
    use iced_x86::Mnemonic::*;
    matches!(insn.mnemonic(), Syscall | Sysenter).then_some(Kind::Far)
}

/// Other returns: RSM, which never completes here, apart.
fn returns(insn: &Instruction) -> Option<Kind> {
    use iced_x86::Mnemonic::*;
    matches!(insn.mnemonic(), Iret | Iretd | Iretq | Sysret | Sysretq | Sysexit | Sysexitq).then_some(Kind::Far)
}

/// INT n, INT3, INTO; not INT1, HLT or UD.
fn interrupts(insn: &Instruction) -> Option<Kind> {
    use iced_x86::Mnemonic::*;
    matches!(insn.mnemonic(), Int | Int3 | Into).then_some(Kind::Far)
}

/// Whether an op of its own stands before `insn` in counted blocks.
pub fn is_branch(mode: Mode, insn: &Instruction) -> bool {
    mode.has(Mode::COUNTED) && !insn.is_invalid() && kind(insn).is_some()
}

/// Put what watches before the instruction that comes next in a block. `lands`: a branch may lead here.
pub fn plan(b: &mut Builder, insn: &Instruction, index: usize, lands: bool) {
    if !b.mode.has(Mode::COUNTED) {
        return;
    }
    if lands {
        b.push(Op::new(landed), insn, index);
    }
    if !insn.is_invalid()
        && let Some(kind) = kind(insn)
    {
        let mut op = Op::new(branch_ahead);
        op.extra = kind as u16;
        b.push(op, insn, index);
    }
}

/// A branch that may or may not retire.
#[derive(Clone, Copy, Debug)]
pub struct Pending {
    rip: u64,
    next: u64,
    kind: Kind,
}

/// Before a branch.
pub fn branch_ahead(cpu: &mut Cpu, op: OpRef) -> Flow {
    note(cpu, op);
    next(cpu, op)
}

#[inline(never)]
fn note(cpu: &mut Cpu, op: OpRef) {
    let rip = hot::along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    let kind = KINDS[op.extra as usize % KINDS.len()];
    cpu.performance.pending = Some(Pending { rip, next: rip.wrapping_add(op.length as u64), kind });
}

/// Where a branch may have led.
pub fn landed(cpu: &mut Cpu, op: OpRef) -> Flow {
    if cpu.performance.pending.is_some() {
        land(cpu, op);
    }
    next(cpu, op)
}

#[inline(never)]
fn land(cpu: &mut Cpu, op: OpRef) {
    let rip = hot::along(cpu.mode, cpu.state.rip().wrapping_add(op.offset as u64));
    let m = &mut cpu.performance;
    if let Some(branch) = m.pending.take() {
        m.branches += 1;
        if let Some(predictor) = &mut m.predictor {
            m.mispredictions += u64::from(predictor.resolve(&branch, rip));
        }
    }
}

/// Entries of the predictor's table.
const ENTRIES: usize = 1024;
/// Return addresses that it remembers.
const RETURNS: usize = 16;

#[derive(Clone, Copy, Default)]
struct Entry {
    rip: u64,
    target: u64,
    /// Two-bit counter of a conditional branch: taken from 2 on.
    taken: u8,
}

/// A table of targets and directions by address, and a stack of return addresses.
pub struct Predictor {
    entries: Box<[Entry]>,
    returns: [u64; RETURNS],
    depth: usize,
}

impl Default for Predictor {
    fn default() -> Predictor {
        Predictor { entries: vec![Entry::default(); ENTRIES].into(), returns: [0; RETURNS], depth: 0 }
    }
}

impl std::fmt::Debug for Predictor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Predictor")
    }
}

impl Predictor {
    /// A branch went to `target`: learn it, and say whether that was not foreseen.
    fn resolve(&mut self, branch: &Pending, target: u64) -> bool {
        let entry = &mut self.entries[(branch.rip ^ branch.rip >> 10) as usize % ENTRIES];
        let known = entry.rip == branch.rip;
        if matches!(branch.kind, Kind::Call | Kind::IndirectCall) {
            self.returns[self.depth % RETURNS] = branch.next;
            self.depth += 1;
        }
        match branch.kind {
            Kind::Direct | Kind::Call | Kind::Far => false,
            Kind::Conditional => {
                let taken = target != branch.next;
                let before = if known { entry.taken } else { 1 };
                let counter = if taken { (before + 1).min(3) } else { before.saturating_sub(1) };
                *entry = Entry { rip: branch.rip, target, taken: counter };
                (before >= 2) != taken
            }
            Kind::Indirect | Kind::IndirectCall => {
                let right = known && entry.target == target;
                *entry = Entry { rip: branch.rip, target, taken: 0 };
                !right
            }
            Kind::Return => {
                self.depth = self.depth.saturating_sub(1);
                let expected = std::mem::take(&mut self.returns[self.depth % RETURNS]);
                expected != target
            }
        }
    }
}

impl Cpu {
    /// IBPB: what was learnt of branches is forgotten.
    pub(crate) fn forget_branches(&mut self) {
        if let Some(p) = &mut self.performance.predictor {
            **p = Default::default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn predictions() {
        let mut p = Predictor::default();
        let branch = |kind| Pending { rip: 0x1000, next: 0x1002, kind };
        // A loop is missed when it is first taken and when it ends.
        let wrong: Vec<_> = [0x900, 0x900, 0x900, 0x1002].map(|t| p.resolve(&branch(Kind::Conditional), t)).into();
        assert_eq!(wrong, [true, false, false, true]);
        assert!(p.resolve(&branch(Kind::Indirect), 0x2000) && !p.resolve(&branch(Kind::Indirect), 0x2000));
        assert!(!p.resolve(&branch(Kind::Call), 0x3000));
        let back = Pending { rip: 0x3000, next: 0x3001, kind: Kind::Return };
        assert!(!p.resolve(&back, 0x1002) && p.resolve(&back, 0x1002));
    }

    #[test]
    fn kinds_of_instructions() {
        let kind_of = |bytes: &[u8]| kind(&iced_x86::Decoder::with_ip(64, bytes, 0, iced_x86::DecoderOptions::NONE).decode());
        assert_eq!(kind_of(&[0x75, 0]), Some(Kind::Conditional));
        assert_eq!(kind_of(&[0xe2, 0]), Some(Kind::Conditional));
        assert_eq!(kind_of(&[0xe8, 0, 0, 0, 0]), Some(Kind::Call));
        assert_eq!(kind_of(&[0xff, 0xd0]), Some(Kind::IndirectCall));
        assert_eq!(kind_of(&[0xff, 0xe0]), Some(Kind::Indirect));
        assert_eq!(kind_of(&[0xc3]), Some(Kind::Return));
        for far in [&[0x48, 0xcf][..], &[0xcb], &[0x0f, 5], &[0x48, 0x0f, 7], &[0xcd, 0x80], &[0xff, 0x28]] {
            assert_eq!(kind_of(far), Some(Kind::Far), "{far:x?}");
        }
        // ADD, HLT, UD2, VMLAUNCH.
        for none in [&[0x01, 0xc0][..], &[0xf4], &[0x0f, 0x0b], &[0x0f, 1, 0xc2]] {
            assert_eq!(kind_of(none), None, "{none:x?}");
        }
    }
}

//! AVIC: the guest's virtual APIC in its backing page (APM vol. 2, Advanced Virtual Interrupt Controller).

use undervisor_core::apic::*;
use undervisor_mmu::GuestMemory;

/// The last of the interrupt-request registers.
const IRR_LAST: u32 = IRR + 0x70;

/// What an access to a register does (APM vol. 2, Guest vAPIC Register Access Behavior).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Happens in the backing page and nothing more.
    Allowed,
    /// Carried out by the processor: TPR, EOI, ICR.
    Accelerated,
    /// Happens in the backing page, then exits.
    Trap,
    /// Exits before it happens.
    Fault,
}

/// The extended registers (feature, control, specific EOI; interrupt enable; extended LVT entries), and what is reserved after them.
fn extended(offset: u32) -> bool {
    matches!(offset, 0x400..=0x420 | 0x480..=0x4f0 | 0x500..)
}

/// Whether x2APIC mode has a register: what has not is #GP, before AVIC is asked.
pub fn x2_exists(offset: u32) -> bool {
    match offset {
        RRD | DFR | ICR_HIGH => false,
        ID | VERSION | TPR..=PPR | EOI | LDR | SVR..=IRR_LAST | ESR | ICR | LVT_TIMER..=CURRENT_COUNT | DIVIDE | SELF_IPI => {
            true
        }
        _ => extended(offset) && offset <= 0x530,
    }
}

pub fn read_behaviour(offset: u32) -> Behaviour {
    match offset {
        APR | CURRENT_COUNT => Behaviour::Fault,
        _ if extended(offset) => Behaviour::Fault,
        _ => Behaviour::Allowed,
    }
}

pub fn write_behaviour(offset: u32) -> Behaviour {
    match offset {
        TPR | EOI | ICR => Behaviour::Accelerated,
        ID | RRD | LDR | DFR | SVR | ESR | LVT_TIMER..=LVT_ERROR | INITIAL_COUNT | DIVIDE => Behaviour::Trap,
        VERSION | APR | PPR | ISR..=IRR_LAST | CURRENT_COUNT => Behaviour::Fault,
        _ if extended(offset) => Behaviour::Fault,
        // ICR_HIGH, and what the manual's table does not name.
        _ => Behaviour::Allowed,
    }
}

/// Why an IPI could not be delivered in hardware: EXITINFO2 bits 63:32 of AVIC_INCOMPLETE_IPI.
pub mod incomplete {
    pub const INVALID_TYPE: u64 = 0;
    pub const NOT_RUNNING: u64 = 1;
    pub const INVALID_TARGET: u64 = 2;
    pub const INVALID_BACKING_PAGE: u64 = 3;
    pub const INVALID_VECTOR: u64 = 4;
}

/// An entry of the physical APIC ID table.
///
/// | 63 | 62 | 51:12 | 11:0 |
/// |---|---|---|---|
/// | valid | is running | backing page | host physical APIC ID |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PhysicalEntry(pub u64);

impl PhysicalEntry {
    pub fn valid(self) -> bool {
        self.0 >> 63 != 0
    }
    pub fn running(self) -> bool {
        self.0 >> 62 & 1 != 0
    }
    pub fn page(self) -> u64 {
        self.0 & 0x000f_ffff_ffff_f000
    }
    pub fn host(self) -> u32 {
        self.0 as u32 & 0xfff
    }
}

/// A processor that an IPI is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Target {
    /// The guest's physical APIC ID.
    id: u32,
    /// Of the table entry that named it: the logical table's where that was asked, else the physical table's.
    index: u32,
}

impl Target {
    fn physical(id: u32) -> Target {
        Target { id, index: id }
    }
}

/// What an ICR write comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Incomplete {
    /// EXITINFO2: reason in the high half, table index in the low.
    pub info2: u64,
}

/// A backing page.
#[derive(Clone, Copy)]
pub struct BackingPage<'a> {
    pub memory: &'a GuestMemory,
    pub address: u64,
}

impl BackingPage<'_> {
    pub fn read(&self, offset: u32) -> u32 {
        self.memory.read::<u32>(self.address + offset as u64).unwrap_or(0)
    }
    pub fn write(&self, offset: u32, value: u32) {
        let _ = self.memory.write::<u32>(self.address + offset as u64, value);
    }

    fn highest(&self, set: u32) -> Option<u8> {
        (0..8).rev().find_map(|i| {
            let word = self.read(set + i * 16);
            (word != 0).then(|| (i * 32 + 31 - word.leading_zeros()) as u8)
        })
    }

    fn put(&self, set: u32, vector: u8, on: bool) {
        let at = set + vector as u32 / 32 * 16;
        let bit = 1 << (vector % 32);
        let old = self.read(at);
        self.write(at, if on { old | bit } else { old & !bit });
    }

    /// Request an interrupt.
    pub fn request(&self, vector: u8) {
        self.put(IRR, vector, true);
    }

    /// Work out PPR anew.
    pub fn update_priority(&self) -> u8 {
        let tpr = self.read(TPR) as u8;
        let in_service = self.highest(ISR).unwrap_or(0);
        let ppr = if tpr >> 4 >= in_service >> 4 { tpr } else { in_service & 0xf0 };
        self.write(PPR, ppr as u32);
        ppr
    }

    /// The interrupt that can be delivered now.
    pub fn deliverable(&self) -> Option<u8> {
        let vector = self.highest(IRR)?;
        (vector >> 4 > self.update_priority() >> 4).then_some(vector)
    }

    /// It is being delivered.
    pub fn accept(&self, vector: u8) {
        self.put(IRR, vector, false);
        self.put(ISR, vector, true);
        self.update_priority();
    }

    /// EOI. `Err`: the vector was level-triggered, the hypervisor must see it.
    pub fn end_of_interrupt(&self) -> Result<(), u8> {
        let Some(vector) = self.highest(ISR) else {
            return Ok(());
        };
        if self.read(TMR + vector as u32 / 32 * 16) >> (vector % 32) & 1 != 0 {
            return Err(vector);
        }
        self.put(ISR, vector, false);
        self.update_priority();
        Ok(())
    }
}

/// AVIC's tables, as the VMCB names them.
#[derive(Clone, Copy, Debug)]
pub struct Tables {
    /// Physical table's address, its last index in bits 8:0 (xAVIC: 7:0).
    pub physical: u64,
    pub logical: u64,
    pub x2: bool,
}

impl Tables {
    fn last(&self) -> u32 {
        self.physical as u32 & 0x1ff
    }

    /// The physical-table entry of a guest APIC ID.
    pub fn entry(&self, memory: &GuestMemory, id: u32) -> Option<PhysicalEntry> {
        if id > self.last() {
            return None;
        }
        let at = (self.physical & 0x000f_ffff_ffff_f000) + id as u64 * 8;
        memory.read::<u64>(at).map(PhysicalEntry).filter(|e| e.valid())
    }

    /// The guest APIC ID of a logical-table entry (valid in bit 31).
    fn logical_id(&self, memory: &GuestMemory, index: u32) -> Option<u32> {
        let at = (self.logical & 0x000f_ffff_ffff_f000) + index as u64 * 4;
        memory.read::<u32>(at).filter(|e| e >> 31 != 0).map(|e| e & 0xff)
    }

    /// What an ICR names, or why the hypervisor must help.
    fn targets(&self, memory: &GuestMemory, own: u32, icr: u64, flat: bool) -> Result<Vec<Target>, Incomplete> {
        let stop = |reason: u64, index: u32| Err(Incomplete { info2: reason << 32 | index as u64 });
        let all = |but: Option<u32>| {
            let ids = (0..=self.last()).filter(|&id| Some(id) != but && self.entry(memory, id).is_some());
            Ok(ids.map(Target::physical).collect())
        };
        let destination = if self.x2 { (icr >> 32) as u32 } else { (icr >> 56) as u32 };
        match icr >> 18 & 3 {
            1 => return Ok(vec![Target::physical(own)]),
            2 => return all(None),
            3 => return all(Some(own)),
            // A broadcast, physical or logical: entries that are not valid do not matter.
            _ if destination == if self.x2 { u32::MAX } else { 0xff } => return all(None),
            _ => {}
        }
        if icr & 1 << 11 == 0 {
            return match self.entry(memory, destination) {
                Some(_) => Ok(vec![Target::physical(destination)]),
                None => stop(incomplete::INVALID_TARGET, destination),
            };
        }
        if self.x2 {
            let cluster = destination >> 16;
            let ids: Vec<u32> = (0..16).filter(|i| destination >> i & 1 != 0).map(|i| cluster * 16 + i).collect();
            return match ids.iter().find(|&&id| self.entry(memory, id).is_none()) {
                Some(&id) => stop(incomplete::INVALID_TARGET, id),
                None => Ok(ids.into_iter().map(Target::physical).collect()),
            };
        }
        let (base, bits) = if flat { (0, destination) } else { ((destination >> 4) * 4, destination & 0xf) };
        let mut targets = Vec::new();
        for i in (0..8).filter(|i| bits >> i & 1 != 0) {
            match self.logical_id(memory, base + i) {
                Some(id) if self.entry(memory, id).is_some() => targets.push(Target { id, index: base + i }),
                _ => return stop(incomplete::INVALID_TARGET, base + i),
            }
        }
        Ok(targets)
    }

    /// Send an IPI: set IRR in the targets' pages. Returns the host APIC IDs that need a doorbell.
    /// (APM vol. 2, AVIC IPI delivery.)
    pub fn send(&self, memory: &GuestMemory, own: u32, icr: u64, flat: bool) -> Result<Vec<u32>, Incomplete> {
        // Fixed, edge-triggered interrupts only.
        if icr >> 8 & 7 != 0 || icr & 1 << 15 != 0 {
            return Err(Incomplete { info2: incomplete::INVALID_TYPE << 32 });
        }
        if icr as u8 <= 15 {
            return Err(Incomplete { info2: incomplete::INVALID_VECTOR << 32 });
        }
        let targets = self.targets(memory, own, icr, flat)?;
        let mut bells = Vec::new();
        let mut idle = None;
        for target in targets {
            let Some(entry) = self.entry(memory, target.id) else { continue };
            if memory.words(entry.page()).is_none() {
                return Err(Incomplete { info2: incomplete::INVALID_BACKING_PAGE << 32 | target.index as u64 });
            }
            BackingPage { memory, address: entry.page() }.request(icr as u8);
            if entry.running() {
                bells.push(entry.host());
            } else {
                idle = idle.or(Some(target.index));
            }
        }
        match idle {
            Some(index) => Err(Incomplete { info2: incomplete::NOT_RUNNING << 32 | index as u64 }),
            None => Ok(bells),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interrupts_by_priority() {
        let memory = GuestMemory::new(1 << 16, 1 << 16, &[]).expect("a small guest memory");
        let page = BackingPage { memory: &memory, address: 0x1000 };
        page.request(0x31);
        page.request(0x52);
        assert_eq!(page.deliverable(), Some(0x52));
        page.accept(0x52);
        assert_eq!(page.deliverable(), None);
        assert_eq!(page.end_of_interrupt(), Ok(()));
        assert_eq!(page.deliverable(), Some(0x31));
        page.write(TPR, 0x30);
        assert_eq!(page.deliverable(), None);
        page.write(TMR + 16, 1 << 17);
        page.accept(0x31);
        assert_eq!(page.end_of_interrupt(), Err(0x31));
    }

    #[test]
    fn ipis_reach_pages_or_the_hypervisor() {
        let memory = GuestMemory::new(1 << 16, 1 << 16, &[]).expect("a small guest memory");
        let t = Tables { physical: 0x2000 | 1, logical: 0x3000, x2: false };
        memory.write::<u64>(0x2000, 3 << 62 | 0x4000).expect("RAM");
        memory.write::<u64>(0x2008, 2 << 62 | 0x5000 | 7).expect("RAM");
        assert_eq!(t.send(&memory, 0, 0x40, true), Ok(vec![0]));
        assert_eq!(t.send(&memory, 0, 1 << 56 | 0x41, true), Err(Incomplete { info2: 1 << 32 | 1 }));
        assert_eq!(memory.read::<u32>(0x5220), Some(2));
        assert_eq!(t.send(&memory, 0, 2 << 56 | 0x41, true), Err(Incomplete { info2: 2 << 32 | 2 }));
        assert_eq!(t.send(&memory, 0, 4 << 8 | 0x41, true), Err(Incomplete { info2: 0 }));
        assert_eq!(t.send(&memory, 0, 0x05, true), Err(Incomplete { info2: 4 << 32 }));
        memory.write::<u32>(0x3000, 1 << 31).expect("RAM");
        assert_eq!(t.send(&memory, 1, 1 << 56 | 1 << 11 | 0x44, true), Ok(vec![0]));
        // A logical destination is reported by the logical table's index: entry 2 names the processor 1, which does not run.
        memory.write::<u32>(0x3008, 1 << 31 | 1).expect("RAM");
        assert_eq!(t.send(&memory, 0, 4 << 56 | 1 << 11 | 0x44, true), Err(Incomplete { info2: 1 << 32 | 2 }));
        // A broadcast asks no logical entry.
        memory.write::<u64>(0x2008, 3 << 62 | 0x5000 | 7).expect("RAM");
        assert_eq!(t.send(&memory, 0, 0xff << 56 | 1 << 11 | 0x45, true), Ok(vec![0, 7]));
        memory.write::<u64>(0x2008, 3 << 62 | 1 << 40 | 7).expect("RAM");
        assert_eq!(t.send(&memory, 0, 1 << 56 | 0x45, true), Err(Incomplete { info2: 3 << 32 | 1 }));
    }

    /// Rows of the manual's table.
    #[test]
    fn registers_behave() {
        use Behaviour::*;
        for (offset, read, write) in [
            (0x10, Allowed, Allowed),
            (ID, Allowed, Trap),
            (VERSION, Allowed, Fault),
            (TPR, Allowed, Accelerated),
            (APR, Fault, Fault),
            (PPR, Allowed, Fault),
            (0x170, Allowed, Fault),
            (ESR, Allowed, Trap),
            (0x290, Allowed, Allowed),
            (ICR, Allowed, Accelerated),
            (ICR_HIGH, Allowed, Allowed),
            (LVT_ERROR, Allowed, Trap),
            (CURRENT_COUNT, Fault, Fault),
            (DIVIDE, Allowed, Trap),
            (0x410, Fault, Fault),
            (0x430, Allowed, Allowed),
            (0x4f0, Fault, Fault),
            (0x500, Fault, Fault),
            (0xff0, Fault, Fault),
        ] {
            assert_eq!((read_behaviour(offset), write_behaviour(offset)), (read, write), "{offset:#x}");
        }
        let absent = [0u32, 0x10, 0x40, 0xc0, 0xe0, 0x290, 0x310, 0x3a0, 0x430, 0x540];
        assert!(absent.iter().all(|&o| !x2_exists(o)));
        assert!(
            [ID, TPR, APR, PPR, EOI, LDR, SVR, 0x170, 0x270, ESR, ICR, CURRENT_COUNT, DIVIDE, SELF_IPI]
                .iter()
                .all(|&o| x2_exists(o))
        );
    }
}

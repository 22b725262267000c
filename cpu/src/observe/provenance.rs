//! Who last wrote a field of a VMCS or VMCB.

use std::collections::BTreeMap;

use undervisor_svm::vmcb;
use undervisor_vmx::Field;

/// A write by software.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Write {
    /// RIP of the instruction that wrote.
    pub rip: u64,
    /// Virtual time: the instruction's number.
    pub now: u64,
    pub value: u64,
    pub level: u8,
    pub cpu: u8,
}

/// The last VM exit that saved guest state to a VMCS or VMCB.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitMark {
    pub now: u64,
    /// Exit reason or code.
    pub reason: u64,
    pub cpu: u8,
}

/// Where a field's value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    By(Write),
    /// The processor saved it at a VM exit.
    SavedByExit(ExitMark),
    /// Nobody wrote it since the VMCS was first seen.
    Never,
    /// The page has been watched only since this time, and nobody wrote it since.
    BeforeWatch(u64),
    /// Writes to it are not watched.
    NotWatched,
}

/// Writers of one VMCS. Those of a processor's current VMCS are with the processor, like the VMCS.
pub struct VmcsWrites {
    fields: [Option<Write>; 256],
    exit: Option<ExitMark>,
}

impl VmcsWrites {
    /// Nobody wrote anything yet.
    pub fn new() -> Box<VmcsWrites> {
        Box::new(VmcsWrites { fields: [None; 256], exit: None })
    }

    /// VMWRITE.
    #[inline]
    pub fn wrote(&mut self, field: Field, write: Write) {
        self.fields[field.0 as usize] = Some(write);
    }

    /// A VM exit saves guest state.
    #[inline]
    pub fn exited(&mut self, mark: ExitMark) {
        self.exit = Some(mark);
    }

    /// Where a field's value comes from.
    pub fn of(&self, field: Field) -> Written {
        use undervisor_vmx::fields::FieldType;
        let write = self.fields[field.0 as usize];
        let saved = field.row().is_some_and(|r| match r.field_type() {
            FieldType::Guest => field != Field::VMCS_LINK_POINTER,
            FieldType::Information => true,
            _ => false,
        });
        match (write, self.exit) {
            (write, Some(exit)) if saved && write.is_none_or(|w| w.now < exit.now) => Written::SavedByExit(exit),
            (Some(write), _) => Written::By(write),
            (None, _) => Written::Never,
        }
    }
}

/// Bytes of a page that share a memory of who wrote them.
const GRANULE: usize = 2;

struct PageWrites {
    physical: u64,
    since: u64,
    granules: Vec<Option<Write>>,
    exit: Option<ExitMark>,
}

// Of a write and an exit at the same time, the write is the later one: what writes retires, what exits does not.

/// Writers of every VMCS seen and of every page watched.
#[derive(Default)]
pub struct Provenance {
    vmcs: BTreeMap<u64, Box<VmcsWrites>>,
    /// By index of the page in guest RAM.
    pages: BTreeMap<usize, PageWrites>,
}

/// Most structures remembered; a guest that makes more of them loses the lowest address.
const MOST: usize = 4096;

impl Provenance {
    /// VMWRITE to a VMCS that is not current.
    pub(super) fn vmwrite(&mut self, vmcs: u64, field: Field, write: Write) {
        self.make_room(vmcs);
        self.vmcs.entry(vmcs).or_insert_with(VmcsWrites::new).wrote(field, write);
    }

    fn make_room(&mut self, vmcs: u64) {
        if self.vmcs.len() >= MOST && !self.vmcs.contains_key(&vmcs) {
            self.vmcs.pop_first();
        }
    }

    /// A VMCS is current no longer.
    pub(super) fn put(&mut self, vmcs: u64, writes: Box<VmcsWrites>) {
        self.make_room(vmcs);
        self.vmcs.insert(vmcs, writes);
    }

    /// A VMCS becomes current.
    pub(super) fn take(&mut self, vmcs: u64) -> Box<VmcsWrites> {
        self.vmcs.remove(&vmcs).unwrap_or_else(VmcsWrites::new)
    }

    /// Begin to watch a page; does nothing if it is watched already.
    pub(super) fn watch(&mut self, index: usize, physical: u64, since: u64) {
        if self.pages.len() < MOST {
            self.pages.entry(index).or_insert_with(|| PageWrites {
                physical,
                since,
                granules: vec![None; 4096 / GRANULE],
                exit: None,
            });
        }
    }

    pub(super) fn watched(&self, index: usize) -> bool {
        self.pages.contains_key(&index)
    }

    /// A store to a page; returns the page's physical address if it is watched.
    pub(super) fn store(&mut self, index: usize, offset: usize, size: usize, write: Write) -> Option<u64> {
        let page = self.pages.get_mut(&index)?;
        let first = offset / GRANULE;
        let last = (offset + size.max(1) - 1) / GRANULE;
        if let Some(granules) = page.granules.get_mut(first..=last.min(4096 / GRANULE - 1)) {
            granules.fill(Some(write));
        }
        Some(page.physical)
    }

    pub(super) fn vmcb_exit(&mut self, index: usize, mark: ExitMark) {
        if let Some(page) = self.pages.get_mut(&index) {
            page.exit = Some(mark);
        }
    }

    /// Where the value of a VMCB's field comes from; `index`: the VMCB's page.
    pub fn of_vmcb(&self, index: Option<usize>, field: undervisor_svm::Field) -> Written {
        let Some(page) = index.and_then(|i| self.pages.get(&i)) else { return Written::NotWatched };
        let first = field.offset as usize / GRANULE;
        let last = (field.offset as usize + field.size as usize - 1) / GRANULE;
        let write = page.granules.get(first..=last).and_then(|g| g.iter().flatten().max_by_key(|w| w.now)).copied();
        match (write, page.exit) {
            (write, Some(exit)) if vmcb::stored(field) && write.is_none_or(|w| w.now < exit.now) => Written::SavedByExit(exit),
            (Some(write), _) => Written::By(write),
            (None, _) if page.since > 0 => Written::BeforeWatch(page.since),
            (None, _) => Written::Never,
        }
    }
}

//! Hardware task switching (SDM vol. 3, Task Management: Task Switching; APM vol. 2, Task Management). Not in IA-32e mode.

use undervisor_core::{Cr0, Exception, Rflags, SegReg, Segment, Vector};

use crate::cpu::{Cpu, Exec, Stop, attention};
use crate::events::Stack;
use crate::segments::{Blame, Descriptor, is_null, null_segment, system};
use crate::virt::{TaskSource, TaskSwitch};

/// A checked task switch.
#[derive(Clone, Copy, Debug)]
pub struct NewTask {
    pub selector: u16,
    pub descriptor: Descriptor,
    pub source: TaskSource,
    pub error_code: Option<u32>,
    /// Where the old task goes on.
    pub rip: u64,
    /// EXT bit of error codes.
    pub ext: u32,
}

/// Where a TSS keeps things; `wide`: 32-bit TSS.
struct Layout {
    wide: bool,
    /// Bytes of a general slot.
    size: u64,
    ip: u64,
    flags: u64,
    registers: u64,
    segments: u64,
    /// Segment slots: ES, CS, SS, DS and, in a 32-bit TSS, FS and GS.
    count: usize,
    ldt: u64,
    /// Lowest allowed limit.
    minimum: u32,
}

const TSS32: Layout =
    Layout { wide: true, size: 4, ip: 0x20, flags: 0x24, registers: 0x28, segments: 0x48, count: 6, ldt: 0x60, minimum: 0x67 };
const TSS16: Layout =
    Layout { wide: false, size: 2, ip: 0xe, flags: 0x10, registers: 0x12, segments: 0x22, count: 4, ldt: 0x2a, minimum: 0x2b };

fn layout(kind: u32) -> &'static Layout {
    if kind & 8 != 0 { &TSS32 } else { &TSS16 }
}

/// What a TSS holds of a task.
#[derive(Default)]
struct Image {
    cr3: Option<u64>,
    ip: u64,
    flags: u64,
    registers: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
    trap: bool,
}

impl Cpu {
    /// Check the TSS that a gate, far JMP, CALL or IRET names. `gate`: the selector came from a task gate or the back link, so that
    /// the descriptor's own DPL does not matter. IRET wants a busy TSS (and its own blame), the others an available one.
    pub fn check_task(&mut self, selector: u16, blame: Blame, gate: bool) -> Exec<Descriptor> {
        self.check_tss(selector, blame, gate, &[system::TSS16, system::TSS])
    }

    fn check_tss(&mut self, selector: u16, blame: Blame, gate: bool, kinds: &[u32]) -> Exec<Descriptor> {
        if is_null(selector) {
            return self.blame(blame, 0);
        }
        if selector & 4 != 0 {
            return self.blame(blame, selector);
        }
        let d = self.read_descriptor(selector, blame)?;
        if d.is_code_or_data() || !kinds.contains(&d.kind()) {
            return self.blame(blame, selector);
        }
        if !gate && d.dpl() < self.state.cpl.max((selector & 3) as u8) {
            return self.blame(blame, selector);
        }
        if !d.present() {
            return self.blame(blame.as_vector(Vector::NP), selector);
        }
        Ok(d)
    }

    /// IRET with NT set: back to the task that the current TSS links to. `rip`: where this one goes on when next resumed.
    pub fn return_to_task(&mut self, rip: u64) -> Exec {
        let selector = self.read_system::<u16>(self.state.tr.base)?;
        let descriptor = self.check_tss(selector, Blame::TS, true, &[system::TSS16_BUSY, system::TSS_BUSY])?;
        self.switch_task(NewTask { selector, descriptor, source: TaskSource::Iret, error_code: None, rip, ext: 0 })
    }

    /// Switch. `Err`: nothing happened (fault in the old task, or a VM exit). Faults of the new task wait for the next boundary.
    pub fn switch_task(&mut self, new: NewTask) -> Exec {
        let to = layout(new.descriptor.kind());
        let blame = Blame { vector: Vector::TS, ext: new.ext };
        if new.descriptor.limit() < to.minimum {
            return self.blame(blame, new.selector);
        }
        self.intercept_task_switch(&TaskSwitch {
            selector: new.selector,
            source: new.source,
            error_code: new.error_code,
            return_rip: new.rip,
        })?;
        let old_tr = self.state.tr;
        let from = layout(old_tr.kind());
        if old_tr.limit < from.minimum {
            return self.blame(blame, old_tr.selector);
        }
        let image = self.read_task(&new.descriptor, to)?;
        self.save_task(&old_tr, from, &new)?;
        let nested = matches!(new.source, TaskSource::Call | TaskSource::Gate);
        let tss = new.descriptor.base();
        if nested {
            self.write_system::<u16>(tss, old_tr.selector)?;
        } else {
            // The old task is no longer busy.
            self.set_busy(old_tr.selector, false)?;
        }
        let mut descriptor = new.descriptor;
        descriptor.raw |= 1 << 41;
        if new.source != TaskSource::Iret {
            self.write_access_byte(new.selector, &descriptor)?;
        }
        // Committed: from here on faults are the new task's.
        self.state.tr = descriptor.segment(new.selector);
        self.state.cr0 |= Cr0::TS;
        self.state.dr7 &= !0x155;
        self.notes.rf_loaded = true;
        self.virt.delivering = None;
        match self.enter_task(&new, to, &image, nested) {
            Err(Stop::Exception) => {
                self.notes.deferred = Some(self.exception);
                self.attend(attention::FAULT);
            }
            other => other?,
        }
        Ok(())
    }

    fn set_busy(&mut self, selector: u16, busy: bool) -> Exec {
        if let Some(address) = self.descriptor_address(selector, 8) {
            let at = address.wrapping_add(5);
            let byte = self.read_system::<u8>(at)?;
            self.write_system::<u8>(at, if busy { byte | 2 } else { byte & !2 })?;
        }
        Ok(())
    }

    fn read_slot(&mut self, at: u64, l: &Layout) -> Exec<u64> {
        let at = at & 0xffff_ffff;
        Ok(if l.wide { self.read_system::<u32>(at)? as u64 } else { self.read_system::<u16>(at)? as u64 })
    }

    fn read_task(&mut self, descriptor: &Descriptor, l: &Layout) -> Exec<Image> {
        let base = descriptor.base();
        let mut image = Image::default();
        if l.wide {
            image.cr3 = Some(self.read_slot(base + 0x1c, l)?);
            image.trap = self.read_system::<u16>(base + 0x64)? & 1 != 0;
        }
        image.ip = self.read_slot(base + l.ip, l)?;
        image.flags = self.read_slot(base + l.flags, l)?;
        for (i, r) in image.registers.iter_mut().enumerate() {
            *r = self.read_slot(base + l.registers + i as u64 * l.size, l)?;
        }
        for i in 0..l.count {
            image.selectors[i] = self.read_slot(base + l.segments + i as u64 * l.size, l)? as u16;
        }
        image.ldt = self.read_slot(base + l.ldt, l)? as u16;
        Ok(image)
    }

    fn save_task(&mut self, tr: &Segment, l: &Layout, new: &NewTask) -> Exec {
        let mut flags = self.state.rflags();
        if new.source == TaskSource::Iret {
            flags &= !Rflags::NT.bits();
        }
        let put = |cpu: &mut Cpu, offset: u64, value: u64| {
            let at = tr.base.wrapping_add(offset) & 0xffff_ffff;
            if l.wide { cpu.write_system::<u32>(at, value as u32) } else { cpu.write_system::<u16>(at, value as u16) }
        };
        // The last slot first, so that a fault on a TSS that crosses pages shows before anything is written to the second.
        for i in (0..l.count).rev() {
            let selector = self.state.seg[i].selector;
            let at = tr.base.wrapping_add(l.segments + i as u64 * l.size) & 0xffff_ffff;
            self.write_system::<u16>(at, selector)?;
        }
        put(self, l.ip, new.rip)?;
        put(self, l.flags, flags)?;
        for i in 0..8 {
            let value = self.state.gpr(i);
            put(self, l.registers + i as u64 * l.size, value)?;
        }
        Ok(())
    }

    /// Load the new task's state; `Err` is a fault in the new task.
    fn enter_task(&mut self, new: &NewTask, l: &Layout, image: &Image, nested: bool) -> Exec {
        let ts = Blame { vector: Vector::TS, ext: new.ext };
        let mut flags = image.flags;
        if nested {
            flags |= Rflags::NT.bits();
        }
        if !l.wide {
            flags &= 0xffff;
        }
        let v8086 = flags & Rflags::VM.bits() != 0;
        self.state.set_rflags(flags);
        self.state.set_rip(image.ip);
        for (i, &value) in image.registers.iter().enumerate() {
            // A 16-bit TSS leaves the upper halves as they are.
            let old = self.state.gpr(i as u8);
            self.state.set_gpr(i as u8, if l.wide { value } else { old & 0xffff_0000 | value });
        }
        // Selectors first, hidden parts invalid until each has passed its checks.
        for (r, &selector) in SegReg::ALL.into_iter().zip(&image.selectors) {
            self.state.set_segment(r, null_segment(selector));
        }
        self.state.ldtr = null_segment(image.ldt);
        self.state.cpl = if v8086 { 3 } else { (image.selectors[SegReg::Cs as usize] & 3) as u8 };
        if image.trap {
            self.state.pending_debug |= undervisor_core::Dr6::BT.bits();
            self.attend(attention::DEBUG);
        }
        self.flags_loaded();
        if let Some(cr3) = image.cr3
            && self.state.paging()
        {
            self.load_cr3(cr3)?;
        }
        self.mode_changed();
        self.load_task_ldt(image.ldt, ts)?;
        if v8086 {
            self.virtual_8086_segments(image.selectors);
            self.privilege_changed();
        } else {
            let cpl = self.state.cpl;
            let ss = image.selectors[SegReg::Ss as usize];
            if is_null(ss) {
                return self.blame(ts, ss);
            }
            let stack = self.stack_segment_for(ss, cpl, ts, Vector::SS)?;
            self.state.set_segment(SegReg::Ss, stack);
            for r in [SegReg::Ds, SegReg::Es, SegReg::Fs, SegReg::Gs] {
                let segment = self.task_data_segment(image.selectors[r as usize], ts)?;
                self.state.set_segment(r, segment);
            }
            let cs = image.selectors[SegReg::Cs as usize];
            let code = self.task_code_segment(cs, ts)?;
            self.state.set_segment(SegReg::Cs, code);
            self.privilege_changed();
        }
        if image.ip > self.state.segment(SegReg::Cs).limit as u64 {
            return Err(self.gp(new.ext));
        }
        if let Some(code) = new.error_code {
            let mut stack = Stack::current(self, new.ext);
            stack.push(self, if l.wide { 4 } else { 2 }, code as u64)?;
            self.set_stack_pointer(stack.sp);
        }
        Ok(())
    }

    fn load_task_ldt(&mut self, selector: u16, ts: Blame) -> Exec {
        if is_null(selector) {
            return Ok(());
        }
        if selector & 4 != 0 {
            return self.blame(ts, selector);
        }
        let d = self.read_descriptor(selector, ts)?;
        if d.is_code_or_data() || d.kind() != system::LDT || !d.present() {
            return self.blame(ts, selector);
        }
        self.state.ldtr = d.segment(selector);
        Ok(())
    }

    fn task_data_segment(&mut self, selector: u16, ts: Blame) -> Exec<Segment> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut d = self.read_descriptor(selector, ts)?;
        let rpl = (selector & 3) as u8;
        if !d.readable() || (!d.conforming() && d.dpl() < rpl.max(self.state.cpl)) {
            return self.blame(ts, selector);
        }
        if !d.present() {
            return self.blame(ts.as_vector(Vector::NP), selector);
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    fn task_code_segment(&mut self, selector: u16, ts: Blame) -> Exec<Segment> {
        if is_null(selector) {
            return self.blame(ts, selector);
        }
        let mut d = self.read_descriptor(selector, ts)?;
        let rpl = (selector & 3) as u8;
        if !d.is_code() || if d.conforming() { d.dpl() > rpl } else { d.dpl() != rpl } {
            return self.blame(ts, selector);
        }
        if !d.present() {
            return self.blame(ts.as_vector(Vector::NP), selector);
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// The fault that a new task owes, if any.
    pub fn take_deferred(&mut self) -> Option<Exception> {
        self.notes.deferred.take()
    }
}

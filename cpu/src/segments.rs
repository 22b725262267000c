//! Segment descriptors and the loading of segment registers (SDM vol. 3, Protected-Mode Memory Management; Protection;
//! APM vol. 2, Segmented Virtual Memory).

use undervisor_core::{Exception, Rflags, SegReg, Segment, Vector, Vendor};

use crate::cpu::{Cpu, Exec, attention};

/// Types of system descriptors (SDM vol. 3, System-Segment and Gate-Descriptor Types).
pub mod system {
    pub const TSS16: u32 = 1;
    pub const LDT: u32 = 2;
    pub const TSS16_BUSY: u32 = 3;
    pub const CALL_GATE16: u32 = 4;
    pub const TASK_GATE: u32 = 5;
    pub const INTERRUPT_GATE16: u32 = 6;
    pub const TRAP_GATE16: u32 = 7;
    pub const TSS: u32 = 9;
    pub const TSS_BUSY: u32 = 11;
    pub const CALL_GATE: u32 = 12;
    pub const INTERRUPT_GATE: u32 = 14;
    pub const TRAP_GATE: u32 = 15;
}

/// A descriptor as it stands in a table; `upper` is the second half of a 16-byte one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    pub raw: u64,
    pub upper: u64,
}

impl Descriptor {
    /// Access rights in the layout of [`Segment::access`].
    pub const fn access(&self) -> u32 {
        (self.raw >> 40) as u32 & 0xf0ff
    }
    pub const fn kind(&self) -> u32 {
        self.access() & 0xf
    }
    pub const fn is_code_or_data(&self) -> bool {
        self.access() & 0x10 != 0
    }
    pub const fn is_code(&self) -> bool {
        self.access() & 0x18 == 0x18
    }
    pub const fn conforming(&self) -> bool {
        self.access() & 0x1c == 0x1c
    }
    pub const fn writable_data(&self) -> bool {
        self.access() & 0x1a == 0x12
    }
    /// Data, or code that may be read.
    pub const fn readable(&self) -> bool {
        self.is_code_or_data() && (!self.is_code() || self.access() & 2 != 0)
    }
    pub const fn dpl(&self) -> u8 {
        (self.access() >> 5 & 3) as u8
    }
    pub const fn present(&self) -> bool {
        self.access() & 0x80 != 0
    }
    pub const fn long(&self) -> bool {
        self.access() & 1 << 13 != 0
    }
    pub const fn big(&self) -> bool {
        self.access() & 1 << 14 != 0
    }
    /// Base address, 64 bits for a 16-byte descriptor.
    pub const fn base(&self) -> u64 {
        self.raw >> 16 & 0xff_ffff | self.raw >> 56 << 24 | self.upper << 32
    }
    /// Limit in bytes.
    pub const fn limit(&self) -> u32 {
        let limit = (self.raw as u32 & 0xffff) | (self.raw >> 32) as u32 & 0xf_0000;
        if self.access() & 1 << 15 != 0 { limit << 12 | 0xfff } else { limit }
    }
    /// The segment register that a load of this gives.
    pub const fn segment(&self, selector: u16) -> Segment {
        Segment { selector, access: self.access(), limit: self.limit(), base: self.base() }
    }

    /// Gates: target selector.
    pub const fn gate_selector(&self) -> u16 {
        (self.raw >> 16) as u16
    }
    /// Gates: target offset, of 16, 32 or 64 bits.
    pub const fn gate_offset(&self) -> u64 {
        let low = self.raw & 0xffff;
        match self.kind() {
            system::CALL_GATE16 | system::INTERRUPT_GATE16 | system::TRAP_GATE16 => low,
            _ => low | self.raw >> 48 << 16 | self.upper << 32,
        }
    }
}

/// Whom a bad selector is blamed on: the fault's vector, and the EXT bit of its error code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Blame {
    pub vector: u8,
    pub ext: u32,
}

impl Blame {
    pub const GP: Blame = Blame { vector: Vector::GP, ext: 0 };
    pub const TS: Blame = Blame { vector: Vector::TS, ext: 0 };

    pub const fn as_vector(self, vector: u8) -> Blame {
        Blame { vector, ..self }
    }
    pub fn of(self, selector: u16) -> Exception {
        Exception::with_code(self.vector, (selector & 0xfffc) as u32 | self.ext)
    }
}

/// A selector that names no descriptor.
pub const fn is_null(selector: u16) -> bool {
    selector & 0xfffc == 0
}

/// A segment register after a null selector was loaded.
pub const fn null_segment(selector: u16) -> Segment {
    Segment { selector, access: Segment::UNUSABLE, limit: 0, base: 0 }
}

impl Cpu {
    /// Raise a selector fault.
    #[cold]
    pub fn blame<T>(&mut self, blame: Blame, selector: u16) -> Exec<T> {
        Err(self.raise(blame.of(selector)))
    }

    /// Linear address of the descriptor of `selector`, of `size` bytes; `None` if its table does not hold it.
    pub fn descriptor_address(&self, selector: u16, size: u32) -> Option<u64> {
        let offset = (selector & 0xfff8) as u32;
        let (base, limit) = if selector & 4 == 0 {
            (self.state.gdtr.base, self.state.gdtr.limit as u32)
        } else {
            let ldtr = &self.state.ldtr;
            if ldtr.unusable() || !ldtr.present() {
                return None;
            }
            (ldtr.base, ldtr.limit)
        };
        if offset + (size - 1) > limit {
            return None;
        }
        let address = base.wrapping_add(offset as u64);
        Some(if self.state.long_mode() { address } else { address & 0xffff_ffff })
    }

    /// Read an 8-byte descriptor.
    pub fn read_descriptor(&mut self, selector: u16, blame: Blame) -> Exec<Descriptor> {
        let Some(address) = self.descriptor_address(selector, 8) else {
            return self.blame(blame, selector);
        };
        Ok(Descriptor { raw: self.read_system::<u64>(address)?, upper: 0 })
    }

    /// Read a system descriptor: 16 bytes in IA-32e mode. Also says whether the upper half's type field is zero, as it must be.
    pub fn read_system_descriptor(&mut self, selector: u16, blame: Blame) -> Exec<Descriptor> {
        let mut d = self.read_descriptor(selector, blame)?;
        if self.state.long_mode() && !d.is_code_or_data() {
            self.read_upper(&mut d, selector, blame)?;
        }
        Ok(d)
    }

    /// Read the upper half of a 16-byte descriptor whose lower half is in `d`.
    pub fn read_upper(&mut self, d: &mut Descriptor, selector: u16, blame: Blame) -> Exec {
        let Some(address) = self.descriptor_address(selector, 16) else {
            return self.blame(blame, selector);
        };
        d.upper = self.read_system::<u64>(address.wrapping_add(8))?;
        if d.upper >> 40 & 0x1f != 0 {
            return self.blame(blame, selector);
        }
        Ok(())
    }

    /// Set the accessed bit of a code or data descriptor about to be loaded.
    pub fn mark_accessed(&mut self, selector: u16, d: &mut Descriptor) -> Exec {
        if d.raw & 1 << 40 == 0 {
            d.raw |= 1 << 40;
            self.write_access_byte(selector, d)?;
        }
        Ok(())
    }

    /// Write back the access byte of a descriptor (accessed or busy bit).
    pub fn write_access_byte(&mut self, selector: u16, d: &Descriptor) -> Exec {
        if let Some(address) = self.descriptor_address(selector, 8) {
            self.write_system::<u8>(address.wrapping_add(5), (d.raw >> 40) as u8)?;
        }
        Ok(())
    }

    /// MOV, POP, LxS to a segment register other than CS.
    pub fn load_segment(&mut self, register: SegReg, selector: u16) -> Exec {
        let segment = if !self.state.protected() || self.state.virtual_8086() {
            self.real_segment(register, selector)
        } else if register == SegReg::Ss {
            self.check_stack_segment(selector)?
        } else {
            self.check_data_segment(selector)?
        };
        self.state.set_segment(register, segment);
        self.privilege_changed();
        Ok(())
    }

    /// What a load in real or virtual-8086 mode leaves. In real mode limit and rights stay, so that a big limit set up in
    /// protected mode goes on to hold ("unreal mode").
    pub fn real_segment(&self, register: SegReg, selector: u16) -> Segment {
        if self.state.virtual_8086() {
            return Segment::real(selector, 0xf3, 0xffff);
        }
        let old = self.state.segment(register);
        if old.unusable() {
            return Segment::real(selector, 0x93, 0xffff);
        }
        Segment::real(selector, old.access & !0x60 | 0x90, old.limit)
    }

    /// The checks of a load of DS, ES, FS or GS (SDM vol. 2, MOV: Operation).
    fn check_data_segment(&mut self, selector: u16) -> Exec<Segment> {
        if is_null(selector) {
            return Ok(null_segment(selector));
        }
        let mut d = self.read_descriptor(selector, Blame::GP)?;
        let rpl = (selector & 3) as u8;
        if !d.readable() || (!d.conforming() && rpl.max(self.state.cpl) > d.dpl()) {
            return self.blame(Blame::GP, selector);
        }
        if !d.present() {
            return self.blame(Blame::GP.as_vector(Vector::NP), selector);
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// The checks of a load of SS.
    fn check_stack_segment(&mut self, selector: u16) -> Exec<Segment> {
        let cpl = self.state.cpl;
        if is_null(selector) {
            if self.mode.is64() && cpl != 3 && (selector & 3) as u8 == cpl {
                return Ok(Self::null_stack(cpl));
            }
            return Err(self.gp(0));
        }
        self.stack_segment_for(selector, cpl, Blame::GP, Vector::SS)
    }

    /// SS in 64-bit mode without a descriptor.
    pub fn null_stack(cpl: u8) -> Segment {
        Segment { access: Segment::UNUSABLE | (cpl as u32) << 5, ..null_segment(cpl as u16) }
    }

    /// Check and fetch a (non-null) stack segment for privilege level `cpl`. `absent` is the vector for a segment that is not present.
    pub fn stack_segment_for(&mut self, selector: u16, cpl: u8, blame: Blame, absent: u8) -> Exec<Segment> {
        let mut d = self.read_descriptor(selector, blame)?;
        if (selector & 3) as u8 != cpl || !d.writable_data() || d.dpl() != cpl {
            return self.blame(blame, selector);
        }
        if !d.present() {
            return self.blame(blame.as_vector(absent), selector);
        }
        self.mark_accessed(selector, &mut d)?;
        Ok(d.segment(selector))
    }

    /// CS := `d`, CPL := `cpl`; the selector's RPL becomes the CPL. RIP is the caller's.
    pub fn set_code_segment(&mut self, selector: u16, d: &Descriptor, cpl: u8) {
        let selector = selector & !3 | cpl as u16;
        self.state.set_segment(SegReg::Cs, d.segment(selector));
        self.state.cpl = cpl;
    }

    /// After a return to an outer level: data segments that the new level may not use become null
    /// (SDM vol. 3, Checking Privileges When Returning From a Procedure).
    pub fn drop_inner_segments(&mut self) {
        for r in [SegReg::Es, SegReg::Ds, SegReg::Fs, SegReg::Gs] {
            let s = *self.state.segment(r);
            let inner = (!s.is_code() || s.access & 4 == 0) && s.dpl() < self.state.cpl;
            if s.unusable() || inner {
                // The base stays: it may have been set by MSR.
                self.state.set_segment(r, Segment { selector: 0, access: Segment::UNUSABLE, ..s });
            }
        }
    }

    /// Events are blocked until the next instruction has completed: MOV SS, POP SS.
    pub fn shadow_after_mov_ss(&mut self) {
        self.state.shadow.mov_ss = true;
        self.notes.shadow_set = true;
        self.attend(attention::SHADOW);
    }

    /// Interrupts are blocked until the next instruction has completed: STI with IF clear.
    pub fn shadow_after_sti(&mut self) {
        self.state.shadow.sti = true;
        self.notes.shadow_set = true;
        self.attend(attention::SHADOW);
        self.look_for_events();
    }

    /// Segments as a switch to virtual-8086 mode leaves them.
    pub fn virtual_8086_segments(&mut self, selectors: [u16; 6]) {
        for (r, selector) in SegReg::ALL.into_iter().zip(selectors) {
            self.state.set_segment(r, Segment::real(selector, 0xf3, 0xffff));
        }
        self.state.cpl = 3;
    }

    /// LAR, LSL, VERR, VERW: the descriptor of `selector` if it can be seen at all, or `None`. Faults only by paging.
    pub fn visible_descriptor(&mut self, selector: u16) -> Exec<Option<Descriptor>> {
        if is_null(selector) {
            return Ok(None);
        }
        let Some(address) = self.descriptor_address(selector, 8) else {
            return Ok(None);
        };
        let mut d = Descriptor { raw: self.read_system::<u64>(address)?, upper: 0 };
        if self.state.long_mode() && !d.is_code_or_data() {
            match self.descriptor_address(selector, 16) {
                Some(address) => d.upper = self.read_system::<u64>(address.wrapping_add(8))?,
                None => return Ok(None),
            }
            if d.upper >> 40 & 0x1f != 0 {
                return Ok(None);
            }
        }
        let rpl = (selector & 3) as u8;
        if !d.conforming() && rpl.max(self.state.cpl) > d.dpl() {
            return Ok(None);
        }
        Ok(Some(d))
    }

    pub fn is_amd(&self) -> bool {
        self.model.vendor == Vendor::Amd
    }

    /// The interrupted program's flags changed wholesale: look at everything that may follow.
    pub fn flags_loaded(&mut self) {
        if self.state.flag(Rflags::TF) || self.state.flag(Rflags::RF) {
            self.attend(attention::DEBUG);
        }
        if self.state.flag(Rflags::IF) || self.state.flag(Rflags::VIF) {
            self.look_for_events();
        }
    }
}

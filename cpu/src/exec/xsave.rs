//! Processor extended states: FXSAVE, FXRSTOR, the XSAVE family, LDMXCSR, STMXCSR
//! (SDM vol. 1, Managing State Using the XSAVE Feature Set; vol. 2, the instructions).

use iced_x86::{Instruction, Mnemonic};
use undervisor_core::xsave::{self, Component, EXTENDED, HEADER, bit};
use undervisor_core::{Cr0, Cr4, Efer, Exception, F80, Feature, Intercept, Vendor, X87};

use super::Row;
use super::x87::status;
use crate::cpu::{Cpu, Exec};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    use Mnemonic as M;
    Some(match insn.mnemonic() {
        M::Fxsave | M::Fxsave64 => Row::new(fxsave),
        M::Fxrstor | M::Fxrstor64 => Row::new(fxrstor),
        M::Xsave | M::Xsave64 => Row::new(xsave),
        M::Xsaveopt | M::Xsaveopt64 => Row::new(xsaveopt),
        M::Xsavec | M::Xsavec64 => Row::new(xsavec),
        M::Xsaves | M::Xsaves64 => Row::ends(xsaves),
        // PKRU may change, and with it what memory may be reached.
        M::Xrstor | M::Xrstor64 => Row::ends(xrstor),
        M::Xrstors | M::Xrstors64 => Row::ends(xrstors),
        M::Ldmxcsr => Row::new(ldmxcsr),
        M::Vldmxcsr => Row::new(vldmxcsr),
        M::Stmxcsr => Row::new(stmxcsr),
        M::Vstmxcsr => Row::new(vstmxcsr),
        _ => return None,
    })
}

/// Value of MXCSR after reset.
const MXCSR_INITIAL: u32 = 0x1f80;

/// How the instruction writes x87 pointers: with REX.W as 64-bit offsets, else as 32-bit offsets and selectors.
fn is_wide(insn: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        insn.mnemonic(),
        M::Fxsave64 | M::Fxrstor64 | M::Xsave64 | M::Xsaveopt64 | M::Xsavec64 | M::Xsaves64 | M::Xrstor64 | M::Xrstors64
    )
}

fn put<const N: usize>(area: &mut [u8], at: usize, bytes: [u8; N]) {
    area[at..at + N].copy_from_slice(&bytes);
}
fn word16(area: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([area[at], area[at + 1]])
}
fn word32(area: &[u8], at: usize) -> u32 {
    word16(area, at) as u32 | (word16(area, at + 2) as u32) << 16
}
fn word64(area: &[u8], at: usize) -> u64 {
    word32(area, at) as u64 | (word32(area, at + 4) as u64) << 32
}

impl Cpu {
    /// MXCSR bits that may be set.
    pub(crate) fn mxcsr_mask(&self) -> u32 {
        if self.model().has(Feature::MISALIGNSSE) {
            return xsave::MXCSR_MASK | xsave::MXCSR_MM;
        }
        xsave::MXCSR_MASK
    }

    fn check_mxcsr(&mut self, value: u32) -> Exec {
        if value & !self.mxcsr_mask() != 0 { Err(self.gp(0)) } else { Ok(()) }
    }

    /// XMM registers that the current mode has.
    fn xmm_count(&self) -> usize {
        if self.mode.is64() { 16 } else { 8 }
    }

    /// Whether the x87 is in its initial configuration (all of it, for the INIT optimisation).
    fn x87_initial(&self) -> bool {
        let (x, i) = (&self.state.x87, X87::default());
        x.control == i.control
            && x.status == 0
            && x.tags == 0
            && x.opcode == 0
            && x.instruction_pointer == 0
            && x.data_pointer == 0
            && x.instruction_selector == 0
            && x.data_selector == 0
            && x.st == i.st
    }

    /// XINUSE: the state components that are not in their initial configuration.
    pub fn xinuse(&self) -> u64 {
        let s = &self.state;
        let sixteen = &s.vec[..16];
        let mut used = 0;
        if !self.x87_initial() {
            used |= bit::X87;
        }
        if sixteen.iter().any(|v| v[0] | v[1] != 0) {
            used |= bit::SSE;
        }
        if sixteen.iter().any(|v| v[2] | v[3] != 0) {
            used |= bit::AVX;
        }
        if s.pkru != 0 {
            used |= bit::PKRU;
        }
        used
    }

    /// x87 state in FXSAVE's layout: bytes 0–23 and 32–159.
    fn x87_image(&self, area: &mut [u8], wide: bool) {
        let x = &self.state.x87;
        put(area, 0, x.control.to_le_bytes());
        put(area, 2, x.status.to_le_bytes());
        put(area, 4, (x.tags as u16).to_le_bytes());
        // AMD processors keep the error pointers only while an exception is pending (APM vol. 2, FXSAVE and FXRSTOR).
        if self.model().vendor == Vendor::Intel || x.status & status::ES != 0 {
            put(area, 6, (x.opcode & 0x7ff).to_le_bytes());
            put(area, 8, x.instruction_pointer.to_le_bytes());
            put(area, 16, x.data_pointer.to_le_bytes());
            if !wide {
                let selectors = !self.x87_no_selectors();
                put(area, 12, (x.instruction_selector as u32 * selectors as u32).to_le_bytes());
                put(area, 20, (x.data_selector as u32 * selectors as u32).to_le_bytes());
            }
        }
        for i in 0..8 {
            let v = self.st(i);
            put(area, 32 + 16 * i, v.mantissa.to_le_bytes());
            put(area, 40 + 16 * i, v.sign_exponent.to_le_bytes());
        }
    }

    fn load_x87_image(&mut self, area: &[u8], wide: bool) {
        let x = &mut self.state.x87;
        x.status = word16(area, 2);
        x.tags = area[4];
        x.opcode = word16(area, 6) & 0x7ff;
        if wide {
            x.instruction_pointer = word64(area, 8);
            x.data_pointer = word64(area, 16);
            x.instruction_selector = 0;
            x.data_selector = 0;
        } else {
            x.instruction_pointer = word32(area, 8) as u64;
            x.instruction_selector = word16(area, 12);
            x.data_pointer = word32(area, 16) as u64;
            x.data_selector = word16(area, 20);
        }
        let top = (x.status >> 11) as usize;
        for i in 0..8 {
            let at = 32 + 16 * i;
            x.st[(top + i) & 7] = F80 { mantissa: word64(area, at), sign_exponent: word16(area, at + 8) };
        }
        self.set_x87_control(word16(area, 0));
    }

    fn xmm_image(&self, area: &mut [u8]) {
        for i in 0..self.xmm_count() {
            put(area, 160 + 16 * i, self.state.vec[i][0].to_le_bytes());
            put(area, 168 + 16 * i, self.state.vec[i][1].to_le_bytes());
        }
    }

    fn load_xmm_image(&mut self, area: &[u8]) {
        for i in 0..self.xmm_count() {
            self.state.vec[i][0] = word64(area, 160 + 16 * i);
            self.state.vec[i][1] = word64(area, 168 + 16 * i);
        }
    }

    /// A component of the extended region.
    fn component_image(&self, component: &Component, out: &mut [u8]) {
        match component.number {
            2 => {
                for i in 0..self.xmm_count() {
                    put(out, 16 * i, self.state.vec[i][2].to_le_bytes());
                    put(out, 16 * i + 8, self.state.vec[i][3].to_le_bytes());
                }
            }
            9 => put(out, 0, (self.state.pkru as u64).to_le_bytes()),
            _ => {}
        }
    }

    /// Load a component, or initialise it if there is no image.
    fn load_component(&mut self, component: &Component, image: Option<&[u8]>) {
        match component.number {
            2 => {
                for i in 0..self.xmm_count() {
                    let (a, b) = image.map_or((0, 0), |m| (word64(m, 16 * i), word64(m, 16 * i + 8)));
                    self.state.vec[i][2] = a;
                    self.state.vec[i][3] = b;
                }
            }
            9 => {
                let pkru = image.map_or(0, |m| word32(m, 0));
                if pkru != self.state.pkru {
                    self.state.pkru = pkru;
                    self.mode_changed();
                }
            }
            _ => {}
        }
    }

    /// Bytes of a component that the current mode has: outside 64-bit mode only registers 0–7.
    fn component_bytes(&self, component: &Component) -> usize {
        if component.number == 2 { 16 * self.xmm_count() } else { component.size }
    }

    /// Linear address of the area, aligned.
    fn area(&mut self, insn: &Instruction, size: usize, align: u64, write: bool) -> Exec<u64> {
        let linear = self.effective_linear(insn, size, write)?;
        if linear & (align - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(linear)
    }

    fn requested(&self) -> u64 {
        self.state.regs[0] & 0xffff_ffff | self.state.regs[2] << 32
    }
}

// ---- FXSAVE, FXRSTOR ----------------------------------------------------------------------------------------------------------

fn fx_available(cpu: &mut Cpu) -> Exec {
    if cpu.state.cr0.intersects(Cr0::EM | Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// Whether XMM registers take part: not with AMD's fast FXSAVE (EFER.FFXSR at CPL 0 in 64-bit mode).
fn fx_with_xmm(cpu: &Cpu) -> bool {
    !(cpu.state.efer.contains(Efer::FFXSR) && cpu.mode.is64() && cpu.state.cpl == 0)
}

fn fxsave(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    fx_available(cpu)?;
    let linear = cpu.area(insn, 512, 16, true)?;
    let mut area = [0; 512];
    cpu.x87_image(&mut area, is_wide(insn));
    put(&mut area, 24, cpu.state.mxcsr.to_le_bytes());
    put(&mut area, 28, cpu.mxcsr_mask().to_le_bytes());
    if !fx_with_xmm(cpu) {
        return cpu.write_bytes(linear, &area[..160]);
    }
    cpu.xmm_image(&mut area);
    let end = 160 + 16 * cpu.xmm_count();
    cpu.write_bytes(linear, &area[..end])
}

fn fxrstor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    fx_available(cpu)?;
    let linear = cpu.area(insn, 512, 16, false)?;
    let mut area = [0; 512];
    cpu.read_bytes(linear, &mut area)?;
    let mxcsr = word32(&area, 24);
    if cpu.state.cr4.contains(Cr4::OSFXSR) {
        cpu.check_mxcsr(mxcsr)?;
        cpu.state.mxcsr = mxcsr;
        if fx_with_xmm(cpu) {
            cpu.load_xmm_image(&area);
        }
    }
    cpu.load_x87_image(&area, is_wide(insn));
    Ok(())
}

// ---- XSAVE and kin ------------------------------------------------------------------------------------------------------------

/// #UD without CR4.OSXSAVE, #NM with CR0.TS.
fn x_available(cpu: &mut Cpu) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud());
    }
    if cpu.state.cr0.contains(Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

/// Write the components in `save` at the places that `places` gives, and MXCSR if asked.
fn save_components(
    cpu: &mut Cpu,
    linear: u64,
    save: u64,
    mxcsr: bool,
    wide: bool,
    places: &[(usize, &'static Component)],
) -> Exec {
    let mut legacy = [0; 512];
    if save & bit::X87 != 0 {
        cpu.x87_image(&mut legacy, wide);
        cpu.write_bytes(linear, &legacy[..24])?;
        cpu.write_bytes(linear.wrapping_add(32), &legacy[32..160])?;
    }
    if mxcsr {
        put(&mut legacy, 24, cpu.state.mxcsr.to_le_bytes());
        put(&mut legacy, 28, cpu.mxcsr_mask().to_le_bytes());
        cpu.write_bytes(linear.wrapping_add(24), &legacy[24..32])?;
    }
    if save & bit::SSE != 0 {
        cpu.xmm_image(&mut legacy);
        let end = 160 + 16 * cpu.xmm_count();
        cpu.write_bytes(linear.wrapping_add(160), &legacy[160..end])?;
    }
    for &(offset, component) in places {
        if save >> component.number & 1 != 0 {
            let mut image = [0; 256];
            cpu.component_image(component, &mut image);
            let size = cpu.component_bytes(component);
            cpu.write_bytes(linear.wrapping_add(offset as u64), &image[..size])?;
        }
    }
    Ok(())
}

/// Standard-format save. `optimise`: leave out components in their initial configuration.
fn save_standard(cpu: &mut Cpu, insn: &Instruction, optimise: bool) -> Exec {
    x_available(cpu)?;
    let vendor = cpu.model().vendor;
    let mask = cpu.requested() & cpu.state.xcr0;
    let linear = cpu.area(insn, xsave::standard_size(vendor, mask), 64, true)?;
    cpu.probe_write(linear, EXTENDED)?;
    let used = cpu.xinuse();
    let old = cpu.read_linear::<u64>(linear.wrapping_add(HEADER as u64))?;
    let places: Vec<_> = xsave::components(vendor).iter().map(|c| (c.offset, c)).collect();
    let save = if optimise { mask & used } else { mask };
    let mxcsr = mask & (bit::SSE | bit::AVX) != 0;
    save_components(cpu, linear, save, mxcsr, is_wide(insn), &places)?;
    cpu.write_linear(linear.wrapping_add(HEADER as u64), old & !mask | used & mask)
}

fn xsave(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    save_standard(cpu, insn, false)
}
fn xsaveopt(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    save_standard(cpu, insn, true)
}

/// Compacted save of the components in `mask`.
fn save_compacted(cpu: &mut Cpu, insn: &Instruction, mask: u64) -> Exec {
    let vendor = cpu.model().vendor;
    let linear = cpu.area(insn, xsave::compacted_size(vendor, mask), 64, true)?;
    cpu.probe_write(linear, EXTENDED)?;
    let mut used = cpu.xinuse();
    if cpu.state.mxcsr != MXCSR_INITIAL {
        used |= bit::SSE;
    }
    let save = mask & used;
    let places: Vec<_> = xsave::compacted(vendor, mask).collect();
    save_components(cpu, linear, save, save & bit::SSE != 0, is_wide(insn), &places)?;
    cpu.write_linear(linear.wrapping_add(HEADER as u64), save)?;
    cpu.write_linear(linear.wrapping_add(HEADER as u64 + 8), mask | bit::COMPACTED)?;
    // The rest of the header is cleared.
    cpu.write_bytes(linear.wrapping_add(HEADER as u64 + 16), &[0; 48])
}

fn xsavec(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    x_available(cpu)?;
    let mask = cpu.requested() & cpu.state.xcr0;
    save_compacted(cpu, insn, mask)
}

/// What XSAVES and XRSTORS check before anything else.
fn supervisor(cpu: &mut Cpu) -> Exec {
    if !cpu.state.cr4.contains(Cr4::OSXSAVE) {
        return Err(cpu.ud());
    }
    if cpu.state.cpl != 0 {
        return Err(cpu.gp(0));
    }
    Ok(())
}

fn xsaves(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    supervisor(cpu)?;
    cpu.intercept(Intercept::Xsaves(cpu.requested() & cpu.state.msrs.xss))?;
    x_available(cpu)?;
    let mask = cpu.requested() & (cpu.state.xcr0 | cpu.state.msrs.xss);
    save_compacted(cpu, insn, mask)
}

/// Restore the components in `mask`; `allowed`: those that the area may hold. `compacted_only`: XRSTORS.
fn restore(cpu: &mut Cpu, insn: &Instruction, mask: u64, allowed: u64, compacted_only: bool) -> Exec {
    let vendor = cpu.model().vendor;
    let linear = cpu.area(insn, EXTENDED, 64, false)?;
    let mut area = [0; EXTENDED];
    cpu.read_bytes(linear, &mut area)?;
    let present = word64(&area, HEADER);
    let layout = word64(&area, HEADER + 8);
    let compacted = layout & bit::COMPACTED != 0;
    let zero = |range: std::ops::Range<usize>| area[range].iter().all(|&b| b == 0);
    let valid = if compacted {
        layout & !bit::COMPACTED & !allowed == 0 && present & !layout == 0 && zero(HEADER + 16..EXTENDED)
    } else {
        !compacted_only && present & !allowed == 0 && layout == 0 && zero(HEADER + 16..HEADER + 24)
    };
    if !valid || present & bit::COMPACTED != 0 {
        return Err(cpu.gp(0));
    }
    let mxcsr = if compacted { mask & present & bit::SSE != 0 } else { mask & (bit::SSE | bit::AVX) != 0 };
    if mxcsr {
        cpu.check_mxcsr(word32(&area, 24))?;
    }
    let places: Vec<_> = if compacted {
        xsave::compacted(vendor, layout & !bit::COMPACTED).collect()
    } else {
        xsave::components(vendor).iter().map(|c| (c.offset, c)).collect()
    };
    // Read everything before changing anything.
    let mut images = Vec::with_capacity(places.len());
    for &(offset, component) in &places {
        let mut image = [0; 256];
        if (mask & present) >> component.number & 1 != 0 {
            let size = cpu.component_bytes(component);
            cpu.read_bytes(linear.wrapping_add(offset as u64), &mut image[..size])?;
        }
        images.push(image);
    }
    if mxcsr {
        cpu.state.mxcsr = word32(&area, 24);
    } else if compacted && mask & bit::SSE != 0 {
        cpu.state.mxcsr = MXCSR_INITIAL;
    }
    if mask & bit::X87 != 0 {
        if present & bit::X87 != 0 {
            cpu.load_x87_image(&area, is_wide(insn));
        } else {
            cpu.state.x87 = X87::default();
        }
    }
    if mask & bit::SSE != 0 {
        if present & bit::SSE == 0 {
            area[160..416].fill(0);
        }
        cpu.load_xmm_image(&area);
    }
    for component in xsave::components(vendor).iter().filter(|c| mask >> c.number & 1 != 0) {
        let image = places
            .iter()
            .position(|&(_, c)| c.number == component.number)
            .filter(|_| present >> component.number & 1 != 0)
            .and_then(|i| images.get(i));
        cpu.load_component(component, image.map(|i| &i[..]));
    }
    Ok(())
}

fn xrstor(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    x_available(cpu)?;
    let xcr0 = cpu.state.xcr0;
    restore(cpu, insn, cpu.requested() & xcr0, xcr0, false)
}

fn xrstors(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    supervisor(cpu)?;
    cpu.intercept(Intercept::Xrstors(cpu.requested() & cpu.state.msrs.xss))?;
    x_available(cpu)?;
    let allowed = cpu.state.xcr0 | cpu.state.msrs.xss;
    restore(cpu, insn, cpu.requested() & allowed, allowed, true)
}

// ---- MXCSR ------------------------------------------------------------------------------------------------------------------------

/// #UD and #NM rules of legacy SSE (SDM vol. 2, Exceptions Type 5) or of VEX.
fn mxcsr_available(cpu: &mut Cpu, vex: bool) -> Exec {
    let s = &cpu.state;
    let there = if vex {
        s.cr4.contains(Cr4::OSXSAVE) && s.xcr0 & 6 == 6 && s.protected() && !s.virtual_8086()
    } else {
        !s.cr0.contains(Cr0::EM) && s.cr4.contains(Cr4::OSFXSR)
    };
    if !there {
        return Err(cpu.ud());
    }
    if cpu.state.cr0.contains(Cr0::TS) {
        return Err(cpu.raise(Exception::NM));
    }
    Ok(())
}

fn load_mxcsr(cpu: &mut Cpu, insn: &Instruction, vex: bool) -> Exec {
    mxcsr_available(cpu, vex)?;
    let linear = cpu.effective_linear(insn, 4, false)?;
    let value = cpu.read_linear::<u32>(linear)?;
    cpu.check_mxcsr(value)?;
    cpu.state.mxcsr = value;
    Ok(())
}

fn store_mxcsr(cpu: &mut Cpu, insn: &Instruction, vex: bool) -> Exec {
    mxcsr_available(cpu, vex)?;
    let linear = cpu.effective_linear(insn, 4, true)?;
    cpu.write_linear(linear, cpu.state.mxcsr)
}

fn ldmxcsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    load_mxcsr(cpu, insn, false)
}
fn vldmxcsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    load_mxcsr(cpu, insn, true)
}
fn stmxcsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    store_mxcsr(cpu, insn, false)
}
fn vstmxcsr(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    store_mxcsr(cpu, insn, true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{fault, processor, step};

    fn machine() -> Box<Cpu> {
        let mut cpu = processor(64);
        cpu.state.cr4 |= Cr4::OSFXSR | Cr4::OSXSAVE;
        cpu.state.xcr0 = 7;
        cpu.state.regs[0] = u64::MAX;
        cpu.state.regs[2] = u64::MAX;
        cpu.state.regs[3] = 0x2000;
        step(&mut cpu, &[0xdb, 0xe3]).unwrap();
        cpu.mode_changed();
        cpu
    }

    const XSAVE: &[u8] = &[0x0f, 0xae, 0x23];
    const XRSTOR: &[u8] = &[0x0f, 0xae, 0x2b];
    const XSAVEC: &[u8] = &[0x0f, 0xc7, 0x23];
    const XSAVES: &[u8] = &[0x0f, 0xc7, 0x2b];
    const XRSTORS: &[u8] = &[0x0f, 0xc7, 0x1b];

    #[test]
    fn standard_round_trip() {
        let mut cpu = machine();
        cpu.state.vec[3] = [1, 2, 3, 4, 0, 0, 0, 0];
        step(&mut cpu, &[0xd9, 0xe8]).unwrap();
        step(&mut cpu, XSAVE).unwrap();
        assert_eq!(cpu.read_linear::<u64>(0x2200).unwrap(), 7);
        cpu.state.vec[3] = [0; 8];
        step(&mut cpu, &[0xdb, 0xe3]).unwrap();
        step(&mut cpu, XRSTOR).unwrap();
        assert_eq!(cpu.state.vec[3], [1, 2, 3, 4, 0, 0, 0, 0]);
        assert_eq!(cpu.state.x87.tags, 0x80);
        // A component absent from XSTATE_BV is initialised.
        cpu.write_linear(0x2200, 3u64).unwrap();
        step(&mut cpu, XRSTOR).unwrap();
        assert_eq!(cpu.state.vec[3], [1, 2, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn compacted_round_trip() {
        let mut cpu = machine();
        for i in 0..16 {
            cpu.state.vec[i] = [0; 8];
        }
        cpu.state.vec[3][2] = 7;
        for save in [XSAVEC, XSAVES] {
            step(&mut cpu, save).unwrap();
            let used = cpu.read_linear::<u64>(0x2200).unwrap();
            assert_eq!(used & !1, 4);
            assert_eq!(cpu.read_linear::<u64>(0x2208).unwrap(), 7 | 1 << 63);
        }
        cpu.state.vec[3][2] = 0;
        cpu.state.mxcsr = 0x1fa0;
        step(&mut cpu, XRSTORS).unwrap();
        assert_eq!((cpu.state.vec[3][2], cpu.state.mxcsr), (7, 0x1f80));
    }

    #[test]
    fn header_checks() {
        let mut cpu = machine();
        step(&mut cpu, XSAVE).unwrap();
        assert_eq!(fault(&mut cpu, XRSTORS), (13, Some(0)));
        cpu.write_linear(0x2200, 8u64).unwrap();
        assert_eq!(fault(&mut cpu, XRSTOR), (13, Some(0)));
        cpu.write_linear(0x2200, 7u64).unwrap();
        cpu.write_linear(0x2210, 1u64).unwrap();
        assert_eq!(fault(&mut cpu, XRSTOR), (13, Some(0)));
        cpu.write_linear(0x2210, 0u64).unwrap();
        cpu.write_linear(0x2018, 0x8000_0000u32).unwrap();
        assert_eq!(fault(&mut cpu, XRSTOR), (13, Some(0)));
        cpu.state.regs[3] = 0x2010;
        assert_eq!(fault(&mut cpu, XSAVE), (13, Some(0)));
    }

    #[test]
    fn fxsave_round_trip() {
        let mut cpu = machine();
        cpu.state.vec[15][1] = 5;
        step(&mut cpu, &[0xd9, 0xeb]).unwrap();
        step(&mut cpu, &[0x0f, 0xae, 0x03]).unwrap();
        assert_eq!(cpu.read_linear::<u32>(0x201c).unwrap(), 0xffff);
        cpu.state.vec[15][1] = 0;
        step(&mut cpu, &[0xdb, 0xe3]).unwrap();
        step(&mut cpu, &[0x0f, 0xae, 0x0b]).unwrap();
        assert_eq!((cpu.state.vec[15][1], cpu.state.x87.tags), (5, 0x80));
    }
}

//! Port I/O: IN, OUT, INS, OUTS (SDM vol. 1, Input/Output; I/O Permission Bit Map).

use iced_x86::{Code, Instruction, Mnemonic as M, OpKind, Register};
use undervisor_core::{Intercept, SegReg, regs};

use crate::cpu::{Cpu, Exec};
use crate::exec::string::{Done, Shape, repeat};
use crate::exec::{Row, operand_size};

pub fn lookup(insn: &Instruction) -> Option<Row> {
    use Code::*;
    // Ends the block: a device may have changed anything, the next event's time among it.
    Some(Row::ends(match (insn.mnemonic(), insn.code()) {
        (M::In, _) => in_,
        (M::Out, _) => out,
        (_, Insb_m8_DX | Insw_m16_DX | Insd_m32_DX) => ins,
        (_, Outsb_DX_m8 | Outsw_DX_m16 | Outsd_DX_m32) => outs,
        _ => return None,
    }))
}

/// Virtual time that IN and OUT take besides their own instruction: a cycle of the bus behind the south bridge is about a
/// microsecond. Loops that poll a device until a moment comes would else be a thousand times as long as they are.
const PORT_TIME: u64 = 1000;

/// Lowest limit of a TSS with an I/O map base.
const TSS_IO_BASE: u32 = 102;

impl Cpu {
    /// #GP(0) unless this privilege may use `size` ports from `port` on: CPL at or below IOPL, or the bits of the TSS's
    /// bitmap are clear. Virtual-8086 mode always looks at the bitmap.
    pub fn check_port(&mut self, port: u16, size: usize) -> Exec {
        let v8086 = self.state.virtual_8086();
        if !self.state.protected() || (self.state.cpl <= self.state.iopl() && !v8086) {
            return Ok(());
        }
        let tr = self.state.tr;
        let available = tr.present() && !tr.unusable() && !tr.is_code_or_data() && matches!(tr.kind(), 9 | 11);
        if !available || tr.limit < TSS_IO_BASE + 1 {
            return Err(self.gp(0));
        }
        let base = self.read_system::<u16>(tr.base.wrapping_add(TSS_IO_BASE as u64))?;
        let offset = base as u64 + port as u64 / 8;
        // Two bytes are read, since an access may span them; both must lie within the segment.
        if offset + 1 > tr.limit as u64 {
            return Err(self.gp(0));
        }
        let bitmap = self.read_system::<u16>(tr.base.wrapping_add(offset))? as u32;
        if bitmap >> (port % 8) & ((1 << size) - 1) != 0 {
            return Err(self.gp(0));
        }
        Ok(())
    }

    /// Read `size` bytes from a port; no checks.
    pub fn port_in(&mut self, port: u16, size: usize) -> u32 {
        let now = self.now();
        let value = self.bus().port_read(now, port, size);
        self.bus_accessed();
        self.io_accessed(port, size);
        if self.observing & crate::observe::want::IO != 0 {
            self.observe_port(port, size, value, false);
        }
        value
    }

    /// Write to a port; no checks.
    pub fn port_out(&mut self, port: u16, size: usize, value: u32) {
        let now = self.now();
        if self.observing & crate::observe::want::IO != 0 {
            self.observe_port(port, size, value, true);
        }
        self.bus().port_write(now, port, size, value);
        self.bus_accessed();
        self.io_accessed(port, size);
    }
}

/// The port of IN or OUT, and whether it is an immediate.
fn port_of(cpu: &Cpu, insn: &Instruction, n: u32) -> (u16, bool) {
    if insn.op_kind(n) == OpKind::Register { (cpu.gpr(Register::DX) as u16, false) } else { (insn.immediate8() as u16, true) }
}

fn simple(port: u16, size: usize, input: bool, immediate: bool) -> Intercept {
    Intercept::Io {
        port,
        size: size as u8,
        input,
        string: false,
        rep: false,
        immediate,
        address: 0,
        segment: SegReg::Ds as u8,
        address_size: 0,
    }
}

fn in_(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (port, immediate) = port_of(cpu, insn, 1);
    let size = operand_size(insn, 0);
    cpu.check_port(port, size)?;
    cpu.intercept(simple(port, size, true, immediate))?;
    let value = cpu.port_in(port, size);
    cpu.set_gpr(insn.op0_register(), value as u64);
    cpu.linger(PORT_TIME);
    Ok(())
}

fn out(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    let (port, immediate) = port_of(cpu, insn, 0);
    let size = operand_size(insn, 1);
    cpu.check_port(port, size)?;
    cpu.intercept(simple(port, size, false, immediate))?;
    let value = cpu.gpr(insn.op1_register()) as u32;
    cpu.port_out(port, size, value);
    cpu.linger(PORT_TIME);
    Ok(())
}

/// Permission and intercept of one iteration of INS or OUTS.
fn admit(cpu: &mut Cpu, insn: &Instruction, shape: &Shape, port: u16, input: bool) -> Exec {
    cpu.check_port(port, shape.size)?;
    let (segment, index) = if input { (SegReg::Es, regs::RDI) } else { (shape.segment, regs::RSI) };
    let offset = shape.get(cpu, index);
    let address = if cpu.mode.is64() && !matches!(segment, SegReg::Fs | SegReg::Gs) {
        offset
    } else {
        let linear = cpu.state.segment(segment).base.wrapping_add(offset);
        if cpu.mode.is64() { linear } else { linear & 0xffff_ffff }
    };
    cpu.intercept(Intercept::Io {
        port,
        size: shape.size as u8,
        input,
        string: true,
        rep: insn.has_rep_prefix() || insn.has_repne_prefix(),
        immediate: false,
        address,
        segment: segment as u8,
        address_size: shape.address_size(),
    })
}

fn ins(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, _| {
        let port = cpu.gpr(Register::DX) as u16;
        admit(cpu, insn, shape, port, true)?;
        let offset = shape.get(cpu, regs::RDI);
        let to = cpu.linear(SegReg::Es, offset, shape.size, true)?;
        // The port must not be read if the store will fault.
        cpu.probe_write(to, shape.size)?;
        let value = cpu.port_in(port, shape.size);
        cpu.write_sized(to, shape.size, value as u64)?;
        shape.advance(cpu, regs::RDI, 1);
        Ok(Done { count: 1, stop: false })
    })
}

fn outs(cpu: &mut Cpu, insn: &Instruction) -> Exec {
    repeat(cpu, insn, |cpu, shape, _| {
        let port = cpu.gpr(Register::DX) as u16;
        admit(cpu, insn, shape, port, false)?;
        let offset = shape.get(cpu, regs::RSI);
        let from = cpu.linear(shape.segment, offset, shape.size, false)?;
        let value = cpu.read_sized(from, shape.size)?;
        cpu.port_out(port, shape.size, value as u32);
        shape.advance(cpu, regs::RSI, 1);
        Ok(Done { count: 1, stop: false })
    })
}

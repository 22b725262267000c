//! What must agree.

use iced_x86::{Mnemonic, OpKind};

use super::generate::{Test, approximate, operand_size};
use super::state::{Outcome, place};

/// A difference: what, host's value, undervisor's value.
pub type Difference = (String, String, String);

fn hex(v: impl std::fmt::LowerHex) -> String {
    format!("{v:#x}")
}

/// Every difference that the architecture does not allow.
pub fn differences(test: &Test, native: &Outcome, guest: &Outcome, native_data: &[u8], guest_data: &[u8]) -> Vec<Difference> {
    let mut out = Vec::new();
    let fault = |f: Option<(u8, u32)>| match f {
        None => "none".to_string(),
        Some((v, code)) => format!("{}({code:#x})", undervisor_core::Vector::name(v)),
    };
    // The guest ends in an undefined instruction where the host goes on to its exit.
    let end = place::TEST + test.bytes.len() as u64;
    let guest_fault = guest.fault.filter(|_| guest.state.rip != end);
    if native.fault != guest_fault {
        out.push(("fault".into(), fault(native.fault), fault(guest_fault)));
    }
    let (n, g) = (&native.state, &guest.state);
    if n.rip != g.rip {
        out.push(("rip".into(), hex(n.rip), hex(g.rip)));
    }
    let insn = &test.instructions[0];
    let single = test.instructions.len() == 1;
    let loose = single && approximate(insn.mnemonic());
    let unbound = single && out_of_domain(test);
    for i in 0..16 {
        if n.regs[i] != g.regs[i] && !(single && undefined_register(test, i, n.regs[i], g.regs[i])) {
            let name = ["rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi"];
            let name = name.get(i).map_or_else(|| format!("r{i}"), |n| n.to_string());
            out.push((name, hex(n.regs[i]), hex(g.regs[i])));
        }
        if n.ymm[i] != g.ymm[i] && !(loose && close_vector(&n.ymm[i], &g.ymm[i])) {
            let show = |y: &[u64; 4]| format!("{:016x}_{:016x}_{:016x}_{:016x}", y[3], y[2], y[1], y[0]);
            out.push((format!("ymm{i}"), show(&n.ymm[i]), show(&g.ymm[i])));
        }
    }
    // RF is the kernel's affair.
    let mask = 0x3f_7fd5 & !test.undefined_flags() & !0x1_0000;
    if (n.rflags ^ g.rflags) & mask != 0 {
        out.push(("rflags".into(), hex(n.rflags & mask), hex(g.rflags & mask)));
    }
    if n.mxcsr != g.mxcsr {
        out.push(("mxcsr".into(), hex(n.mxcsr), hex(g.mxcsr)));
    }
    let (a, b) = (&n.x87, &g.x87);
    if a.control != b.control {
        out.push(("x87 control".into(), hex(a.control), hex(b.control)));
    }
    let status_mask = if unbound {
        !0xbaff
    } else if loose {
        !0x82a0
    } else {
        !0
    };
    if (a.status ^ b.status) & status_mask != 0 {
        out.push(("x87 status".into(), hex(a.status), hex(b.status)));
    }
    if a.tags != b.tags && !unbound {
        out.push(("x87 tags".into(), hex(a.tags), hex(b.tags)));
    }
    for i in 0..8 {
        let (x, y) = (a.st[i], b.st[i]);
        let close = loose && near(x, y, ulps(insn.mnemonic()));
        if x != y && !close && !unbound {
            let show = |v: undervisor_core::F80| format!("{:04x}_{:016x}", v.sign_exponent, v.mantissa);
            out.push((format!("fpr{i}"), show(x), show(y)));
        }
    }
    if native_data != guest_data && !(single && undefined_memory(test)) {
        for (i, (x, y)) in native_data.chunks_exact(8).zip(guest_data.chunks_exact(8)).enumerate() {
            if x != y {
                let v = |b: &[u8]| b.iter().rev().map(|b| format!("{b:02x}")).collect::<String>();
                out.push((format!("[{:#x}]", place::DATA + 8 * i as u64), v(x), v(y)));
            }
        }
    }
    out
}

/// Operands for which a transcendental instruction promises nothing, or for which the value of π that the host reduces by shows.
fn out_of_domain(test: &Test) -> bool {
    let x = &test.start.x87;
    let st0 = x.st[(x.status >> 11 & 7) as usize];
    let exponent = (st0.sign_exponent & 0x7fff) as i32 - 0x3fff;
    match test.instructions[0].mnemonic() {
        Mnemonic::F2xm1 => exponent >= 0,
        Mnemonic::Fyl2xp1 => exponent >= -2,
        Mnemonic::Fsin | Mnemonic::Fcos | Mnemonic::Fsincos | Mnemonic::Fptan => (4..63).contains(&exponent),
        _ => false,
    }
}

/// Lanes of single precision that agree to 12 bits, as approximations do.
fn close_vector(a: &[u64; 4], b: &[u64; 4]) -> bool {
    a.iter().zip(b).flat_map(|(x, y)| [(*x as u32, *y as u32), ((x >> 32) as u32, (y >> 32) as u32)]).all(|(x, y)| {
        let (f, g) = (f32::from_bits(x), f32::from_bits(y));
        x == y || (f - g).abs() <= f.abs() * (1.0 / 1024.0)
    })
}

/// How far the host's own approximation may be off. Trigonometric ones lose a few bits where the argument is close to a multiple of π/2.
fn ulps(mnemonic: Mnemonic) -> u128 {
    match mnemonic {
        Mnemonic::Fsin | Mnemonic::Fcos | Mnemonic::Fsincos | Mnemonic::Fptan => 1 << 10,
        _ => 4,
    }
}

/// Within some units in the last place, across a power of two as well.
fn near(x: undervisor_core::F80, y: undervisor_core::F80, units: u128) -> bool {
    let wide = |v: undervisor_core::F80| ((v.sign_exponent & 0x7fff) as u128) << 63 | (v.mantissa << 1 >> 1) as u128;
    x.sign_exponent >> 15 == y.sign_exponent >> 15 && wide(x).abs_diff(wide(y)) <= units
}

/// Destinations that are undefined for the operands at hand.
fn undefined_register(test: &Test, register: usize, _native: u64, _guest: u64) -> bool {
    let insn = &test.instructions[0];
    let to = insn.op0_kind() == OpKind::Register && insn.op0_register().full_register().number() == register;
    match insn.mnemonic() {
        Mnemonic::Shld | Mnemonic::Shrd => to && operand_size(insn) == 2,
        Mnemonic::Bswap => to && operand_size(insn) == 2,
        _ => false,
    }
}

fn undefined_memory(test: &Test) -> bool {
    let insn = &test.instructions[0];
    matches!(insn.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd) && operand_size(insn) == 2
}

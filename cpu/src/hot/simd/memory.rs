//! Ops that move between memory and vector registers.

use super::forms::{set_legacy, set_vex, vector};
use crate::access::Way;
use crate::cpu::Cpu;
use crate::hot::operand::{address, form};
use crate::hot::{Hot, hot};
use crate::op::{Handler, OpRef};

/// Load BYTES into vector register `a`, zero-extended to 128 bits, with VEX to all bits. ALIGNED: misalignment is left to the
/// general form.
struct Load<const BYTES: usize, const VEX: bool, const ALIGNED: bool, const A: u8>;
/// Store the low BYTES of vector register `a`.
struct Store<const BYTES: usize, const ALIGNED: bool, const A: u8>;

impl<const BYTES: usize, const VEX: bool, const ALIGNED: bool, const A: u8> Hot for Load<BYTES, VEX, ALIGNED, A> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let linear = address::<A>(cpu, op);
        if ALIGNED && linear & (BYTES as u64 - 1) != 0 {
            return Err(W::general(cpu));
        }
        if BYTES == 32 {
            let v = W::read_words::<4>(cpu, linear)?;
            set_vex(cpu, op.a, v);
            return Ok(());
        }
        let v = match BYTES {
            1 => [W::read::<u8>(cpu, linear)? as u64, 0],
            2 => [W::read::<u16>(cpu, linear)? as u64, 0],
            4 => [W::read::<u32>(cpu, linear)? as u64, 0],
            8 => [W::read::<u64>(cpu, linear)?, 0],
            _ => W::read_words::<2>(cpu, linear)?,
        };
        if VEX {
            set_vex(cpu, op.a, v)
        } else {
            set_legacy(cpu, op.a, v)
        }
        Ok(())
    }
}

impl<const BYTES: usize, const ALIGNED: bool, const A: u8> Hot for Store<BYTES, ALIGNED, A> {
    #[inline(always)]
    fn run<W: Way>(cpu: &mut Cpu, op: OpRef) -> Result<(), W::Miss> {
        let linear = address::<A>(cpu, op);
        if ALIGNED && linear & (BYTES as u64 - 1) != 0 {
            return Err(W::general(cpu));
        }
        match BYTES {
            1 => {
                let [v] = vector::<1>(cpu, op.a);
                W::write::<u8>(cpu, linear, v as u8)
            }
            2 => {
                let [v] = vector::<1>(cpu, op.a);
                W::write::<u16>(cpu, linear, v as u16)
            }
            4 => {
                let [v] = vector::<1>(cpu, op.a);
                W::write::<u32>(cpu, linear, v as u32)
            }
            8 => {
                let [v] = vector::<1>(cpu, op.a);
                W::write::<u64>(cpu, linear, v)
            }
            16 => {
                let v = vector::<2>(cpu, op.a);
                W::write_words(cpu, linear, v)
            }
            _ => {
                let v = vector::<4>(cpu, op.a);
                W::write_words(cpu, linear, v)
            }
        }
    }
}

macro_rules! by_form {
    ($form:expr, $a:ident => $e:expr) => {
        match $form {
            form::BASE => {
                const $a: u8 = form::BASE;
                $e
            }
            // FULL serves INDEX too: its segment slot is the one that holds zero.
            form::INDEX | form::FULL => {
                const $a: u8 = form::FULL;
                $e
            }
            _ => {
                const $a: u8 = form::OFFSET32;
                $e
            }
        }
    };
}

/// Handler of a load.
pub fn load(bytes: u8, vex: bool, aligned: bool, address_form: u8) -> Option<Handler> {
    Some(by_form!(address_form, A => match (bytes, vex, aligned) {
        (1, ..) => hot::<Load<1, false, false, A>>,
        (2, ..) => hot::<Load<2, false, false, A>>,
        (4, false, _) => hot::<Load<4, false, false, A>>,
        (4, true, _) => hot::<Load<4, true, false, A>>,
        (8, false, _) => hot::<Load<8, false, false, A>>,
        (8, true, _) => hot::<Load<8, true, false, A>>,
        (16, false, false) => hot::<Load<16, false, false, A>>,
        (16, false, true) => hot::<Load<16, false, true, A>>,
        (16, true, false) => hot::<Load<16, true, false, A>>,
        (16, true, true) => hot::<Load<16, true, true, A>>,
        (32, _, false) => hot::<Load<32, true, false, A>>,
        (32, _, true) => hot::<Load<32, true, true, A>>,
        _ => return None,
    }))
}

/// Handler of a store.
pub fn store(bytes: u8, aligned: bool, address_form: u8) -> Option<Handler> {
    Some(by_form!(address_form, A => match (bytes, aligned) {
        (1, _) => hot::<Store<1, false, A>>,
        (2, _) => hot::<Store<2, false, A>>,
        (4, _) => hot::<Store<4, false, A>>,
        (8, _) => hot::<Store<8, false, A>>,
        (16, false) => hot::<Store<16, false, A>>,
        (16, true) => hot::<Store<16, true, A>>,
        (32, false) => hot::<Store<32, false, A>>,
        (32, true) => hot::<Store<32, true, A>>,
        _ => return None,
    }))
}

//! Packing with saturation, unpacking, widening.

use super::lanes::{build, build_blocks, instructions, view};

macro_rules! pack {
    ($x:expr, $from:ty, $to:ty) => {{
        let (a, b) = (view::<$from, N>(&$x.a), view::<$from, N>(&$x.b));
        let half = super::lanes::block::<N>() * 8 / size_of::<$from>();
        build_blocks(|base, i| {
            let from = base / 2;
            let v = if i < half { a[from + i] } else { b[from + i - half] };
            v.clamp(<$to>::MIN as $from, <$to>::MAX as $from) as $to
        })
    }};
}
macro_rules! unpack {
    ($x:expr, $t:ty, $high:literal) => {{
        let (a, b) = (view::<$t, N>(&$x.a), view::<$t, N>(&$x.b));
        let half = super::lanes::block::<N>() * 8 / size_of::<$t>() / 2;
        build_blocks(|base, i| {
            let from = base + i / 2 + if $high { half } else { 0 };
            if i & 1 == 0 { a[from] } else { b[from] }
        })
    }};
}
macro_rules! widen {
    ($x:expr, $from:ty, $to:ty) => {{
        let b = view::<$from, N>(&$x.b);
        build(|i| b[i] as $to)
    }};
}

instructions! {
    Packsswb = |x| pack!(x, i16, i8);
    Packssdw = |x| pack!(x, i32, i16);
    Packuswb = |x| pack!(x, i16, u8);
    Packusdw = |x| pack!(x, i32, u16);
    Punpcklbw = |x| unpack!(x, u8, false);
    Punpcklwd = |x| unpack!(x, u16, false);
    Punpckldq = |x| unpack!(x, u32, false);
    Punpcklqdq = |x| unpack!(x, u64, false);
    Punpckhbw = |x| unpack!(x, u8, true);
    Punpckhwd = |x| unpack!(x, u16, true);
    Punpckhdq = |x| unpack!(x, u32, true);
    Punpckhqdq = |x| unpack!(x, u64, true);
    Pmovzxbw = |x| widen!(x, u8, u16);
    Pmovzxbd = |x| widen!(x, u8, u32);
    Pmovzxbq = |x| widen!(x, u8, u64);
    Pmovzxwd = |x| widen!(x, u16, u32);
    Pmovzxwq = |x| widen!(x, u16, u64);
    Pmovzxdq = |x| widen!(x, u32, u64);
    Pmovsxbw = |x| widen!(x, i8, i16);
    Pmovsxbd = |x| widen!(x, i8, i32);
    Pmovsxbq = |x| widen!(x, i8, i64);
    Pmovsxwd = |x| widen!(x, i16, i32);
    Pmovsxwq = |x| widen!(x, i16, i64);
    Pmovsxdq = |x| widen!(x, i32, i64);
}

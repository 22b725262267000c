//! Vectors as arrays of lanes.
//!
//! A vector is `[u64; N]`, N = 1 (MMX), 2 (XMM) or 4 (YMM), little-endian. [`view`] shows it as lanes of another width, so that
//! a loop over lanes is what the compiler's vectoriser wants to see.
#![allow(unsafe_code)]

#[cfg(target_endian = "big")]
compile_error!("lanes are numbered from the least significant byte: a big-endian host needs its own views");

/// A lane type.
///
/// # Safety
/// Any bit pattern is a value, there is no padding, and the alignment is at most that of `u64`.
pub unsafe trait Lane: Copy + Default + 'static {}
macro_rules! lane { ($($t:ty)*) => {$(
    // SAFETY: a primitive number of at most 8 bytes.
    unsafe impl Lane for $t {}
)*} }
lane!(u8 i8 u16 i16 u32 i32 u64 i64);

/// The lanes of a vector.
#[inline(always)]
pub fn view<T: Lane, const N: usize>(v: &[u64; N]) -> &[T] {
    // SAFETY: the same bytes, in bounds and aligned; any bit pattern is a `T` (contract of `Lane`).
    unsafe { std::slice::from_raw_parts(v.as_ptr().cast::<T>(), lanes::<T, N>()) }
}

/// The lanes of a vector, to be written.
#[inline(always)]
pub fn view_mut<T: Lane, const N: usize>(v: &mut [u64; N]) -> &mut [T] {
    // SAFETY: as for `view`; any `T` is a valid bit pattern of `u64`.
    unsafe { std::slice::from_raw_parts_mut(v.as_mut_ptr().cast::<T>(), lanes::<T, N>()) }
}

/// Number of `T` in N words.
#[inline(always)]
pub const fn lanes<T, const N: usize>() -> usize {
    8 * N / size_of::<T>()
}

/// What an instruction works on. Which of these it looks at is its own affair; the rest cost nothing.
#[derive(Clone, Copy)]
pub struct In<const N: usize> {
    /// The destination before the instruction.
    pub old: [u64; N],
    /// First source; the destination in legacy encodings.
    pub a: [u64; N],
    /// Second source, or the only one: the register or memory operand.
    pub b: [u64; N],
    /// Fourth operand: VBLENDV's mask; XMM0 in legacy encodings.
    pub c: [u64; N],
    /// Immediate byte (two of them for EXTRQ and INSERTQ).
    pub imm: u16,
}

/// An instruction without exceptions: the result's lanes from the sources'.
pub trait Lanes {
    fn lanes<const N: usize>(x: &In<N>) -> [u64; N];
}

/// Words in a block that shuffles do not cross: 128 bits, 64 for MMX.
#[inline(always)]
pub const fn block<const N: usize>() -> usize {
    if N == 1 { 1 } else { 2 }
}

/// Word `i` (0 where a narrow vector has none).
#[inline(always)]
pub fn word<const N: usize>(v: &[u64; N], i: usize) -> u64 {
    if i < N { v[i] } else { 0 }
}

/// Lane by lane from two vectors of lanes; the result may have lanes of another type, of the same width.
#[inline(always)]
pub fn zip<S: Lane, T: Lane, const N: usize>(a: &[u64; N], b: &[u64; N], f: impl Fn(S, S) -> T) -> [u64; N] {
    let mut r = [0; N];
    let (x, y, z) = (view::<S, N>(a), view::<S, N>(b), view_mut::<T, N>(&mut r));
    for i in 0..lanes::<S, N>() {
        z[i] = f(x[i], y[i]);
    }
    r
}

/// Lane by lane from one vector.
#[inline(always)]
pub fn map<S: Lane, T: Lane, const N: usize>(a: &[u64; N], f: impl Fn(S) -> T) -> [u64; N] {
    let mut r = [0; N];
    let (x, z) = (view::<S, N>(a), view_mut::<T, N>(&mut r));
    for i in 0..lanes::<S, N>() {
        z[i] = f(x[i]);
    }
    r
}

/// `out` lane `i` = `f(i)`.
#[inline(always)]
pub fn build<T: Lane, const N: usize>(f: impl Fn(usize) -> T) -> [u64; N] {
    let mut r = [0; N];
    let z = view_mut::<T, N>(&mut r);
    for (i, z) in z.iter_mut().enumerate() {
        *z = f(i);
    }
    r
}

/// As [`build`], with the lane's place split: `f(base, i)` where `base` is its block's first lane and `i` its number in the block.
#[inline(always)]
pub fn build_blocks<T: Lane, const N: usize>(f: impl Fn(usize, usize) -> T) -> [u64; N] {
    let mut r = [0; N];
    let z = view_mut::<T, N>(&mut r);
    let n = block::<N>() * 8 / size_of::<T>();
    let mut base = 0;
    while base < lanes::<T, N>() {
        for i in 0..n {
            z[base + i] = f(base, i);
        }
        base += n;
    }
    r
}

impl<const N: usize> In<N> {
    #[inline(always)]
    pub fn zip<S: Lane, T: Lane>(&self, f: impl Fn(S, S) -> T) -> [u64; N] {
        zip(&self.a, &self.b, f)
    }
    #[inline(always)]
    pub fn map<S: Lane, T: Lane>(&self, f: impl Fn(S) -> T) -> [u64; N] {
        map(&self.b, f)
    }
    /// Per 128-bit block (the whole of an MMX register is in the low word).
    #[inline(always)]
    pub fn blocks(&self, f: impl Fn([u64; 2], [u64; 2]) -> [u64; 2]) -> [u64; N] {
        let mut r = [0; N];
        let mut i = 0;
        while i < N {
            let one = f([self.a[i], word(&self.a, i + 1)], [self.b[i], word(&self.b, i + 1)]);
            r[i] = one[0];
            if i + 1 < N {
                r[i + 1] = one[1];
            }
            i += 2;
        }
        r
    }
}

/// Declare instructions: `Name = |x| result;`.
macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident = |$x:pat_param| $e:expr;)*) => {$(
        $(#[$doc])*
        pub struct $name;
        impl $crate::simd::Lanes for $name {
            #[inline(always)]
            fn lanes<const N: usize>($x: &$crate::simd::In<N>) -> [u64; N] {
                $e
            }
        }
    )*};
}
pub(crate) use instructions;

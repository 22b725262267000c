//! The operations, on unpacked values. Each raises the exceptions that come before rounding; `round::pack` raises the rest.

use super::round::{Raw, rounds_up, shift_right_jam};
use super::unpacked::{Class, Unpacked, note_denormals};
use super::{Env, Rounding, flags};

/// Outcome of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    Less,
    Equal,
    Greater,
    Unordered,
}

/// The NaN that an operation on `a` and `b` gives, at least one of which is a NaN
/// (SDM vol. 1, Rules for Handling NaNs; SSE: the first source operand; x87: the larger significand).
#[cold]
fn propagate(a: &Unpacked, b: &Unpacked, env: &mut Env) -> Raw {
    if a.class == Class::Signaling || b.class == Class::Signaling {
        env.raise(flags::IE);
    }
    let (qa, qb) = (a.quieted(), b.quieted());
    let chosen = if !b.is_nan() {
        qa
    } else if !a.is_nan() {
        qb
    } else if !env.x87 {
        qa
    } else if a.class == Class::Signaling && b.class == Class::Quiet {
        qb
    } else if a.class == Class::Quiet && b.class == Class::Signaling {
        qa
    } else if qa.significand != qb.significand {
        if qa.significand > qb.significand { qa } else { qb }
    } else if qa.sign {
        qb
    } else {
        qa
    };
    chosen.into()
}

/// An invalid operation.
#[cold]
pub fn invalid(env: &mut Env) -> Raw {
    env.raise(flags::IE);
    Unpacked::INDEFINITE.into()
}

/// NaN and unsupported operands. `None`: go on.
#[inline]
pub fn special(a: &Unpacked, b: &Unpacked, env: &mut Env) -> Option<Raw> {
    let plain = |u: &Unpacked| matches!(u.class, Class::Zero | Class::Finite | Class::Infinity);
    if plain(a) && plain(b) {
        return None;
    }
    if a.class == Class::Unsupported || b.class == Class::Unsupported {
        return Some(invalid(env));
    }
    Some(propagate(a, b, env))
}

/// One operand that is a NaN or unsupported. `None`: go on.
#[inline]
pub fn special1(a: &Unpacked, env: &mut Env) -> Option<Raw> {
    match a.class {
        Class::Zero | Class::Finite | Class::Infinity => None,
        Class::Unsupported => Some(invalid(env)),
        Class::Quiet => Some((*a).into()),
        Class::Signaling => {
            env.raise(flags::IE);
            Some(a.quieted().into())
        }
    }
}

/// The sign of an exact zero sum of unlike operands.
fn zero_sum(env: &Env) -> Raw {
    Unpacked::zero(env.rounding == Rounding::Down).into()
}

/// Sum of two finite non-zero values; both significands must have their last bit clear (or sticky).
fn add_finite(a: Raw, b: Raw, env: &Env) -> Raw {
    let (big, small) = if (a.exponent, a.significand) >= (b.exponent, b.significand) { (a, b) } else { (b, a) };
    let distance = (big.exponent as i64 - small.exponent as i64).min(200) as u32;
    let x = big.significand >> 1;
    let y = shift_right_jam(small.significand, 1 + distance);
    let sum = if a.sign == b.sign { x + y } else { x - y };
    if sum == 0 {
        return zero_sum(env);
    }
    Raw::normalised(big.sign, big.exponent + 1, sum)
}

/// a + b.
pub fn add(a: Unpacked, b: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&a, &b, env) {
        return r;
    }
    match (a.class, b.class) {
        (Class::Infinity, Class::Infinity) if a.sign != b.sign => return invalid(env),
        (Class::Infinity, _) => {
            note_denormals(env, &[&b]);
            return a.into();
        }
        (_, Class::Infinity) => {
            note_denormals(env, &[&a]);
            return b.into();
        }
        _ => note_denormals(env, &[&a, &b]),
    }
    match (a.is_zero(), b.is_zero()) {
        (true, true) if a.sign == b.sign => a.into(),
        (true, true) => zero_sum(env),
        (true, false) => b.into(),
        (false, true) => a.into(),
        (false, false) => add_finite(a.into(), b.into(), env),
    }
}

/// a − b. (A NaN keeps its sign.)
pub fn sub(a: Unpacked, b: Unpacked, env: &mut Env) -> Raw {
    if b.is_nan() {
        return add(a, b, env);
    }
    add(a, b.negated(), env)
}

/// a × b.
pub fn mul(a: Unpacked, b: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&a, &b, env) {
        return r;
    }
    let sign = a.sign != b.sign;
    if a.is_infinite() || b.is_infinite() {
        if a.is_zero() || b.is_zero() {
            return invalid(env);
        }
        note_denormals(env, &[&a, &b]);
        return Unpacked::infinity(sign).into();
    }
    note_denormals(env, &[&a, &b]);
    if a.is_zero() || b.is_zero() {
        return Unpacked::zero(sign).into();
    }
    product(&a, &b)
}

/// Exact product of finite non-zero values.
fn product(a: &Unpacked, b: &Unpacked) -> Raw {
    let significand = a.significand as u128 * b.significand as u128;
    Raw::normalised(a.sign != b.sign, a.exponent + b.exponent + 1, significand)
}

/// a ÷ b.
pub fn div(a: Unpacked, b: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special(&a, &b, env) {
        return r;
    }
    let sign = a.sign != b.sign;
    if (a.is_infinite() && b.is_infinite()) || (a.is_zero() && b.is_zero()) {
        return invalid(env);
    }
    if a.is_infinite() {
        note_denormals(env, &[&b]);
        return Unpacked::infinity(sign).into();
    }
    if b.is_zero() {
        env.raise(flags::ZE);
        return Unpacked::infinity(sign).into();
    }
    note_denormals(env, &[&a, &b]);
    if a.is_zero() || b.is_infinite() {
        return Unpacked::zero(sign).into();
    }
    let d = b.significand as u128;
    let n = (a.significand as u128) << 63;
    let (high, rest) = (n / d, n % d);
    let n = rest << 64;
    let (low, rest) = (n / d, n % d);
    Raw::normalised(sign, a.exponent - b.exponent, high << 64 | low | u128::from(rest != 0))
}

/// √a.
pub fn sqrt(a: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special1(&a, env) {
        return r;
    }
    if a.is_zero() {
        return a.into();
    }
    if a.sign {
        return invalid(env);
    }
    if a.is_infinite() {
        return a.into();
    }
    note_denormals(env, &[&a]);
    let odd = a.exponent & 1;
    let n = (a.significand as u128) << (63 + odd);
    let root = n.isqrt();
    let rest = n - root * root;
    // The next bit is set if (root + ½)² ≤ n; equality is impossible.
    let significand = root << 64 | u128::from(rest > root) << 63 | u128::from(rest != 0);
    Raw::normalised(false, (a.exponent - odd) / 2, significand)
}

/// a × b + c with one rounding, for formats of at most 53 bits
/// (SDM vol. 1, Fused-Multiply-ADD (FMA) Numeric Behavior). NaNs are preferred in the order a, b, c.
pub fn fma(a: Unpacked, b: Unpacked, c: Unpacked, env: &mut Env) -> Raw {
    if a.is_nan() || b.is_nan() || c.is_nan() {
        if [a, b, c].iter().any(|u| u.class == Class::Signaling) {
            env.raise(flags::IE);
        }
        let chosen = if a.is_nan() {
            a
        } else if b.is_nan() {
            b
        } else {
            c
        };
        return chosen.quieted().into();
    }
    let sign = a.sign != b.sign;
    if a.is_infinite() || b.is_infinite() {
        if a.is_zero() || b.is_zero() || (c.is_infinite() && c.sign != sign) {
            return invalid(env);
        }
        note_denormals(env, &[&a, &b, &c]);
        return Unpacked::infinity(sign).into();
    }
    note_denormals(env, &[&a, &b, &c]);
    if c.is_infinite() {
        return c.into();
    }
    if a.is_zero() || b.is_zero() {
        if !c.is_zero() {
            return c.into();
        }
        return if c.sign == sign { c.into() } else { zero_sum(env) };
    }
    let p = product(&a, &b);
    if c.is_zero() {
        return p;
    }
    add_finite(p, c.into(), env)
}

/// Compare. `signaling`: quiet NaNs are invalid too.
pub fn compare(a: Unpacked, b: Unpacked, signaling: bool, env: &mut Env) -> Relation {
    let odd = |u: &Unpacked| matches!(u.class, Class::Quiet | Class::Signaling | Class::Unsupported);
    if odd(&a) || odd(&b) {
        let invalid = |u: &Unpacked| matches!(u.class, Class::Signaling | Class::Unsupported);
        if signaling || invalid(&a) || invalid(&b) {
            env.raise(flags::IE);
        }
        return Relation::Unordered;
    }
    note_denormals(env, &[&a, &b]);
    order(&a, &b)
}

/// Order of two values that are not NaNs.
pub fn order(a: &Unpacked, b: &Unpacked) -> Relation {
    if a.is_zero() && b.is_zero() {
        return Relation::Equal;
    }
    let key = |u: &Unpacked| match u.class {
        Class::Zero => (0, 0, 0),
        Class::Infinity => (2, 0, 0),
        _ => (1, u.exponent, u.significand),
    };
    let magnitude = match (a.sign, b.sign) {
        (false, false) => key(a).cmp(&key(b)),
        (true, true) => key(b).cmp(&key(a)),
        (false, true) => std::cmp::Ordering::Greater,
        (true, false) => std::cmp::Ordering::Less,
    };
    match magnitude {
        std::cmp::Ordering::Less => Relation::Less,
        std::cmp::Ordering::Equal => Relation::Equal,
        std::cmp::Ordering::Greater => Relation::Greater,
    }
}

/// Magnitude of a finite value as an integer: (magnitude, inexact, rounded up), or `None` beyond 64 bits.
fn integer_magnitude(a: &Unpacked, rounding: Rounding) -> Option<(u64, bool, bool)> {
    if a.exponent > 63 {
        return None;
    }
    let wide = shift_right_jam((a.significand as u128) << 64, (63 - a.exponent) as u32);
    let whole = (wide >> 64) as u64;
    let rest = wide as u64 as u128;
    let up = rounds_up(rounding, a.sign, whole & 1 != 0, rest, 1 << 63);
    Some((whole.checked_add(up as u64)?, rest != 0, up))
}

/// To a signed integer of `bits` (≤ 64); out of range and NaN: IE and the integer indefinite, 1 followed by zeros.
/// Denormal operands raise PE only, as the conversions to integers do.
pub fn to_signed(a: Unpacked, bits: u32, env: &mut Env) -> i64 {
    env.rounded_up = false;
    let indefinite = i64::MIN >> (64 - bits);
    let magnitude = match a.class {
        Class::Zero => return 0,
        Class::Finite => integer_magnitude(&a, env.rounding),
        _ => None,
    };
    let limit = (1u64 << (bits - 1)) - !a.sign as u64;
    match magnitude {
        Some((m, inexact, up)) if m <= limit => {
            if inexact {
                env.raise(flags::PE);
                env.rounded_up = up;
            }
            if a.sign { (m as i64).wrapping_neg() } else { m as i64 }
        }
        _ => {
            env.raise(flags::IE);
            indefinite
        }
    }
}

/// To an unsigned integer of `bits` (≤ 64); out of range and NaN: IE and all ones.
pub fn to_unsigned(a: Unpacked, bits: u32, env: &mut Env) -> u64 {
    let all = u64::MAX >> (64 - bits);
    let magnitude = match a.class {
        Class::Zero => return 0,
        Class::Finite => integer_magnitude(&a, env.rounding),
        _ => None,
    };
    match magnitude {
        Some((m, inexact, _)) if m <= all && (!a.sign || m == 0) => {
            if inexact {
                env.raise(flags::PE);
            }
            m
        }
        _ => {
            env.raise(flags::IE);
            all
        }
    }
}

/// Round to an integral value in the same format. Raises PE if inexact; DE is the caller's to raise (FRNDINT does, ROUNDPS does not).
pub fn round_integral(a: Unpacked, env: &mut Env) -> Raw {
    env.rounded_up = false;
    if let Some(r) = special1(&a, env) {
        return r;
    }
    if a.class != Class::Finite || a.exponent >= 63 {
        return a.into();
    }
    let Some((m, inexact, up)) = integer_magnitude(&a, env.rounding) else { return a.into() };
    if inexact {
        env.raise(flags::PE);
    }
    let mut r = Unpacked::from_u64(m);
    r.sign = a.sign;
    env.rounded_up = up && inexact;
    r.into()
}

/// To another format: what `pack` needs. Raises DE and IE.
#[inline]
pub fn convert(a: Unpacked, env: &mut Env) -> Raw {
    if let Some(r) = special1(&a, env) {
        return r;
    }
    note_denormals(env, &[&a]);
    a.into()
}

//! What compiled programs do, as far as busybox's applets do not: `workloads matmul` and `workloads strings`. Each prints a figure that
//! depends on all of its work.
#![deny(unsafe_op_in_unsafe_fn)]

use std::hint::black_box;
use std::process::ExitCode;

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("matmul") => println!("{}", matmul(200, 5)),
        Some("strings") => println!("{}", strings(3000)),
        _ => {
            eprintln!("usage: workloads matmul|strings");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

/// Products of two `n` by `n` matrices of doubles by the schoolbook's three loops; the sum of the last one's elements.
fn matmul(n: usize, times: usize) -> f64 {
    let a: Vec<f64> = (0..n * n).map(|i| (i % 17) as f64 + 0.25).collect();
    let b: Vec<f64> = (0..n * n).map(|i| (i % 13) as f64 - 0.5).collect();
    let mut c = vec![0.0; n * n];
    for _ in 0..times {
        let (a, b) = (black_box(&a), black_box(&b));
        for (row, out) in a.chunks_exact(n).zip(c.chunks_exact_mut(n)) {
            for (j, sum) in out.iter_mut().enumerate() {
                *sum = row.iter().zip(b[j..].iter().step_by(n)).map(|(x, y)| x * y).sum();
            }
        }
        black_box(&mut c);
    }
    c.iter().sum()
}

/// The C library's memcpy and strlen, on blocks from a byte to a few pages at every alignment.
fn strings(times: usize) -> usize {
    let from: Vec<u8> = (0..1 << 16).map(|i| (i % 255) as u8 + 1).collect();
    // The last byte is never written: an end for whatever precedes it.
    let mut to = vec![0u8; 1 << 16 | 1];
    let mut total = 0;
    for _ in 0..times {
        for i in 0..1000 {
            let length = i * 7 % 1024 + 1;
            to[i..][..length].copy_from_slice(&black_box(&from)[i * 3..][..length]);
            to[i + length] = 0;
            total += strlen(black_box(&to[i..]));
        }
        to[..1 << 14].copy_from_slice(&black_box(&from)[1..=1 << 14]);
        to[1 << 14] = 0;
        total += strlen(black_box(&to));
    }
    total
}

#[allow(unsafe_code)]
fn strlen(text: &[u8]) -> usize {
    unsafe extern "C" {
        fn strlen(text: *const std::ffi::c_char) -> usize;
    }
    assert_eq!(text.last(), Some(&0));
    // SAFETY: the slice ends in a NUL, so the string ends inside it.
    unsafe { strlen(text.as_ptr().cast()) }
}

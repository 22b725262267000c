//! `cargo fuzz run -s none virtio_console` on stable Rust. The body is in `testsuite/src/fuzz`.
#![no_main]

use libfuzzer_sys::fuzz_target;
use undervisor_testsuite::fuzz;

fuzz_target!(|data: &[u8]| fuzz::run("virtio_console", data));

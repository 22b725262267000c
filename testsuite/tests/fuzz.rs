//! Each fuzz target on a fixed set of generated inputs: nothing panics, nothing hangs.
#![cfg(not(debug_assertions))]

use std::sync::mpsc;
use std::time::Duration;

use undervisor_testsuite::fuzz::{TARGETS, smoke};

/// A target that has not come back after this long hangs.
const PATIENCE: Duration = Duration::from_secs(300);

fn run(name: &'static str, cases: usize) {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || {
        let target = TARGETS.iter().find(|t| t.name == name).expect("a target");
        smoke(target, cases);
        let _ = done.send(());
    });
    if let Err(why) = wait.recv_timeout(PATIENCE) {
        panic!("{name}: {why}");
    }
}

macro_rules! targets {
    ($($name:ident $cases:literal;)*) => {
        $(#[test] fn $name() { run(stringify!($name), $cases); })*
        #[test]
        fn every_target_is_here() {
            assert_eq!(TARGETS.map(|t| t.name), [$(stringify!($name)),*]);
        }
    };
}

targets! {
    execute 1500;
    bzimage 300;
    multiboot 300;
    elf 300;
    qcow2 400;
    virtio_block 3000;
    virtio_console 3000;
    vmx 1000;
    svm 1000;
}

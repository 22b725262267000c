//! A test on the host's own processor.
//!
//! This module runs generated machine code in the host process. Its invariants:
//! - the test sees three fixed mappings (code, data, context) made once, below 2 GiB, so that the entry and exit stubs address
//!   the context without any register;
//! - generated instructions do not branch out, change segments or control state, or reach memory outside the data mapping
//!   except by faulting (`generate` sees to it); a fault is caught by a signal handler on its own stack, which recognises the
//!   test by its instruction pointer and sends it to the exit stub; any other fault gets the default action;
//! - the exit stub restores every register that the calling convention preserves, the x87 control word and MXCSR;
//! - one test at a time: `Native` is created once per process (a lock is held for its life) and is neither Send nor Sync.
#![allow(unsafe_code)]

use std::sync::{Mutex, MutexGuard};

use undervisor_core::{F80, X87};

use super::state::{Outcome, State, place};

const CONTEXT: usize = 0x12_0000;
const EXIT: usize = CONTEXT + 0x10;
const VECTOR: usize = CONTEXT + 0x18;
const ERROR: usize = CONTEXT + 0x20;
const FAULT_RIP: usize = CONTEXT + 0x28;
const IN: usize = CONTEXT + 0x40;
const OUT: usize = CONTEXT + 0x100;
const IN_STATE: usize = CONTEXT + 0x400;
const OUT_STATE: usize = CONTEXT + 0x800;
const STATE_SIZE: usize = 832;
const NO_FAULT: u64 = u64::MAX;

std::arch::global_asm!(
    ".globl undervisor_oracle_enter",
    "undervisor_oracle_enter:",
    "push rbx",
    "push rbp",
    "push r12",
    "push r13",
    "push r14",
    "push r15",
    "pushfq",
    "mov qword ptr [{C} + 0], rsp",
    "stmxcsr dword ptr [{C} + 0x30]",
    "fnstcw word ptr [{C} + 0x38]",
    "mov eax, 7",
    "xor edx, edx",
    "xrstor64 [{C} + 0x400]",
    "push qword ptr [{C} + 0xc0]",
    "popfq",
    "mov rax, qword ptr [{C} + 0x40]",
    "mov rcx, qword ptr [{C} + 0x48]",
    "mov rdx, qword ptr [{C} + 0x50]",
    "mov rbx, qword ptr [{C} + 0x58]",
    "mov rsp, qword ptr [{C} + 0x60]",
    "mov rbp, qword ptr [{C} + 0x68]",
    "mov rsi, qword ptr [{C} + 0x70]",
    "mov rdi, qword ptr [{C} + 0x78]",
    "mov r8, qword ptr [{C} + 0x80]",
    "mov r9, qword ptr [{C} + 0x88]",
    "mov r10, qword ptr [{C} + 0x90]",
    "mov r11, qword ptr [{C} + 0x98]",
    "mov r12, qword ptr [{C} + 0xa0]",
    "mov r13, qword ptr [{C} + 0xa8]",
    "mov r14, qword ptr [{C} + 0xb0]",
    "mov r15, qword ptr [{C} + 0xb8]",
    "jmp qword ptr [{C} + 8]",
    ".globl undervisor_oracle_exit",
    "undervisor_oracle_exit:",
    "mov qword ptr [{C} + 0x100], rax",
    "mov qword ptr [{C} + 0x108], rcx",
    "mov qword ptr [{C} + 0x110], rdx",
    "mov qword ptr [{C} + 0x118], rbx",
    "mov qword ptr [{C} + 0x120], rsp",
    "mov qword ptr [{C} + 0x128], rbp",
    "mov qword ptr [{C} + 0x130], rsi",
    "mov qword ptr [{C} + 0x138], rdi",
    "mov qword ptr [{C} + 0x140], r8",
    "mov qword ptr [{C} + 0x148], r9",
    "mov qword ptr [{C} + 0x150], r10",
    "mov qword ptr [{C} + 0x158], r11",
    "mov qword ptr [{C} + 0x160], r12",
    "mov qword ptr [{C} + 0x168], r13",
    "mov qword ptr [{C} + 0x170], r14",
    "mov qword ptr [{C} + 0x178], r15",
    "mov rsp, qword ptr [{C} + 0]",
    "pushfq",
    "pop qword ptr [{C} + 0x180]",
    "cld",
    "mov eax, 7",
    "xor edx, edx",
    "xsave64 [{C} + 0x800]",
    "fninit",
    "fldcw word ptr [{C} + 0x38]",
    "ldmxcsr dword ptr [{C} + 0x30]",
    "vzeroupper",
    "popfq",
    "pop r15",
    "pop r14",
    "pop r13",
    "pop r12",
    "pop rbp",
    "pop rbx",
    "ret",
    C = const CONTEXT,
);

unsafe extern "C" {
    fn undervisor_oracle_enter();
    fn undervisor_oracle_exit();
}

static ONE: Mutex<()> = Mutex::new(());

/// The host's processor.
pub struct Native {
    _lock: MutexGuard<'static, ()>,
}

fn peek(at: usize) -> u64 {
    // SAFETY: callers pass addresses inside the context mapping, which lives for ever.
    unsafe { (at as *const u64).read_volatile() }
}
fn poke(at: usize, value: u64) {
    // SAFETY: as for `peek`.
    unsafe { (at as *mut u64).write_volatile(value) }
}

/// A fault: if the test's, note it and go on at the exit stub.
extern "C" fn on_fault(signal: libc::c_int, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes the interrupted context; only registers of it are read and written.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let rip = registers[libc::REG_RIP as usize] as u64;
    if !(place::CODE..place::CODE + 0x1000).contains(&rip) {
        // SAFETY: plain system call; the fault happens again and ends the process.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
        return;
    }
    poke(VECTOR, registers[libc::REG_TRAPNO as usize] as u64);
    poke(ERROR, registers[libc::REG_ERR as usize] as u64);
    poke(FAULT_RIP, rip);
    registers[libc::REG_RIP as usize] = peek(EXIT) as i64;
}

fn map(address: u64, size: usize, executable: bool) -> std::io::Result<()> {
    let protection = libc::PROT_READ | libc::PROT_WRITE | if executable { libc::PROT_EXEC } else { 0 };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: FIXED_NOREPLACE never replaces a mapping.
    let p = unsafe { libc::mmap(address as usize as *mut _, size, protection, flags, -1, 0) };
    if p as usize as u64 != address { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

impl Native {
    /// Map the test's memory and install signal handlers (both stay). Fails if the host lacks AVX or forbids the mappings.
    pub fn new() -> Result<Native, String> {
        static READY: Mutex<bool> = Mutex::new(false);
        let lock = ONE.lock().unwrap_or_else(|e| e.into_inner());
        if !std::is_x86_feature_detected!("avx") || !std::is_x86_feature_detected!("xsave") {
            return Err("the host's processor has no AVX or no XSAVE".into());
        }
        let mut ready = READY.lock().unwrap_or_else(|e| e.into_inner());
        if !*ready {
            let say = |e: std::io::Error| format!("cannot map memory for native tests: {e}");
            map(place::CODE, 0x1000, true).map_err(say)?;
            map(place::DATA, place::DATA_SIZE, false).map_err(say)?;
            map(CONTEXT as u64, 0x1000, false).map_err(say)?;
            *ready = true;
        }
        poke(EXIT, undervisor_oracle_exit as *const () as u64);
        install_handlers();
        Ok(Native { _lock: lock })
    }

    /// Run `code` from `start` on `data`.
    pub fn run(&mut self, code: &[u8], start: &State, data: &mut [u8]) -> Outcome {
        assert!(code.len() < 0x800 && data.len() == place::DATA_SIZE);
        // jmp [EXIT]
        let mut leave = [0xff, 0x24, 0x25, 0, 0, 0, 0];
        leave[3..].copy_from_slice(&(EXIT as u32).to_le_bytes());
        let area = state_image(start);
        // SAFETY: the targets are the three mappings of `new`, long enough for what is copied; no reference into them exists.
        unsafe {
            let at = place::TEST as usize as *mut u8;
            at.copy_from_nonoverlapping(code.as_ptr(), code.len());
            at.add(code.len()).copy_from_nonoverlapping(leave.as_ptr(), leave.len());
            (place::DATA as usize as *mut u8).copy_from_nonoverlapping(data.as_ptr(), data.len());
            (IN_STATE as *mut u8).copy_from_nonoverlapping(area.as_ptr(), area.len());
        }
        for (i, r) in start.regs.iter().enumerate() {
            poke(IN + 8 * i, *r);
        }
        poke(IN + 0x80, start.rflags);
        poke(CONTEXT + 8, place::TEST);
        poke(VECTOR, NO_FAULT);
        // SAFETY: the stub keeps the calling convention (module's invariants); the test code was written above.
        unsafe { undervisor_oracle_enter() };
        let mut out = [0u8; STATE_SIZE];
        // SAFETY: as above.
        unsafe {
            data.as_mut_ptr().copy_from_nonoverlapping(place::DATA as usize as *const u8, data.len());
            out.as_mut_ptr().copy_from_nonoverlapping(OUT_STATE as *const u8, out.len());
        }
        let vector = peek(VECTOR);
        let mut state = State { rip: place::TEST + code.len() as u64, ..start.clone() };
        for (i, r) in state.regs.iter_mut().enumerate() {
            *r = peek(OUT + 8 * i);
        }
        state.rflags = peek(OUT + 0x80);
        take_image(&mut state, &out);
        if vector == NO_FAULT {
            return Outcome { state, fault: None };
        }
        state.rip = peek(FAULT_RIP);
        Outcome { state, fault: Some((vector as u8, peek(ERROR) as u32)) }
    }
}

fn install_handlers() {
    const STACK: usize = 64 * 1024;
    thread_local! {
        static ALTERNATE: Box<[u8; STACK]> = Box::new([0; STACK]);
    }
    ALTERNATE.with(|stack| {
        let stack = libc::stack_t { ss_sp: stack.as_ptr() as *mut _, ss_flags: 0, ss_size: STACK };
        // SAFETY: the stack lives as long as the thread.
        unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) };
    });
    for signal in [libc::SIGSEGV, libc::SIGBUS, libc::SIGFPE, libc::SIGILL, libc::SIGTRAP] {
        // SAFETY: the handler follows the rules for signal handlers: it touches fixed memory and its context only.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_fault as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
            libc::sigaction(signal, &action, std::ptr::null_mut());
        }
    }
}

/// An XSAVE area, standard format.
fn state_image(s: &State) -> [u8; STATE_SIZE] {
    let mut a = [0; STATE_SIZE];
    let x = &s.x87;
    a[0..2].copy_from_slice(&x.control.to_le_bytes());
    a[2..4].copy_from_slice(&x.status.to_le_bytes());
    a[4] = x.tags;
    let top = (x.status >> 11 & 7) as usize;
    for i in 0..8 {
        let v = x.st[(top + i) & 7];
        a[32 + 16 * i..40 + 16 * i].copy_from_slice(&v.mantissa.to_le_bytes());
        a[40 + 16 * i..42 + 16 * i].copy_from_slice(&v.sign_exponent.to_le_bytes());
    }
    a[24..28].copy_from_slice(&s.mxcsr.to_le_bytes());
    for (i, y) in s.ymm.iter().enumerate() {
        for (w, value) in y.iter().enumerate() {
            let at = if w < 2 { 160 + 16 * i + 8 * w } else { 576 + 16 * i + 8 * (w - 2) };
            a[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
    }
    a[512] = 7;
    a
}

fn take_image(s: &mut State, a: &[u8; STATE_SIZE]) {
    let word = |at: usize| {
        let mut b = [0; 8];
        b.copy_from_slice(&a[at..at + 8]);
        u64::from_le_bytes(b)
    };
    let present = a[512];
    s.x87 = X87::default();
    if present & 1 != 0 {
        s.x87.control = word(0) as u16;
        s.x87.status = (word(0) >> 16) as u16;
        s.x87.tags = a[4];
        let top = (s.x87.status >> 11 & 7) as usize;
        for i in 0..8 {
            s.x87.st[(top + i) & 7] = F80 { mantissa: word(32 + 16 * i), sign_exponent: word(40 + 16 * i) as u16 };
        }
    }
    s.mxcsr = word(24) as u32;
    for (i, y) in s.ymm.iter_mut().enumerate() {
        for w in 0..2 {
            y[w] = if present & 2 != 0 { word(160 + 16 * i + 8 * w) } else { 0 };
            y[w + 2] = if present & 4 != 0 { word(576 + 16 * i + 8 * w) } else { 0 };
        }
    }
}

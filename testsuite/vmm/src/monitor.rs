//! The monitor: memory, processors in 64-bit mode, the 64-bit Linux boot protocol, and a serial port.
//!
//! Unsafe code: the guest's memory is one mapping of this process, handed to KVM, which outlives every use of it (it is leaked until
//! the process ends). It is only written before the processors start.
#![allow(unsafe_code)]

use std::error::Error;
use std::io::Write as _;
use std::sync::atomic::{AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use super::acpi;
use kvm_bindings::{
    KVM_MAX_CPUID_ENTRIES, KVM_MP_STATE_RUNNABLE, KVM_PIT_SPEAKER_DUMMY, Msrs, kvm_mp_state, kvm_msr_entry, kvm_pit_config,
    kvm_regs, kvm_segment, kvm_userspace_memory_region,
};
use kvm_ioctls::{Kvm, VcpuExit, VcpuFd, VmFd};

/// CPUID.1:ECX: a hypervisor is there, so that guests look for KVM's leaves.
const HYPERVISOR: u32 = 1 << 31;
/// IA32_MISC_ENABLE.
const MISC_ENABLE: u32 = 0x1a0;
const BOOT_PARAMS: usize = 0x7000;
const PAGE_TABLES: usize = 0x9000;
const COMMAND_LINE: usize = 0x2_0000;
const KERNEL: usize = 0x10_0000;
const LARGE_PAGE: usize = 2 << 20;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Boot what the arguments say and run it to its end.
pub fn run(arguments: &[String]) -> Result<()> {
    let kernel = std::fs::read(arguments.first().ok_or("usage: vmm KERNEL [INITRD] [COMMAND LINE] [MiB] [VCPUS]")?)?;
    let initrd = match arguments.get(1).filter(|s| !s.is_empty()) {
        Some(path) => std::fs::read(path)?,
        None => Vec::new(),
    };
    let command_line = arguments.get(2).map_or("console=ttyS0 reboot=t panic=-1", String::as_str);
    let mib: usize = arguments.get(3).map_or(Ok(256), |s| s.parse())?;
    let vcpus: u64 = arguments.get(4).map_or(Ok(1), |s| s.parse())?;
    let size = mib << 20;
    // At a multiple of 2 MiB, so that large pages of this process can be large pages of the guest.
    let memory: &'static mut [u8] = Vec::leak(vec![0u8; size + LARGE_PAGE]);
    let skip = memory.as_ptr().align_offset(LARGE_PAGE);
    let memory = &mut memory[skip..skip + size];

    let kvm = Kvm::new().map_err(|e| format!("/dev/kvm: {e}"))?;
    let vm = kvm.create_vm()?;
    vm.set_tss_address(0xfffb_d000)?;
    vm.create_irq_chip()?;
    // With KVM's port 0x61: guests without a better clock measure the time by channel 2 and its output there.
    vm.create_pit2(kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() })?;
    let region = kvm_userspace_memory_region {
        slot: 0,
        flags: 0,
        guest_phys_addr: 0,
        memory_size: size as u64,
        userspace_addr: memory.as_ptr() as u64,
    };
    // SAFETY: the region is page-aligned, mapped for the life of the process, and not touched by it once processors run.
    unsafe { vm.set_user_memory_region(region)? };
    load(memory, &kernel, &initrd, command_line, vcpus)?;

    let serial = Arc::new(Mutex::new(Serial::default()));
    let vm = Arc::new(vm);
    let mut threads = Vec::new();
    for id in 0..vcpus {
        let vcpu = vm.create_vcpu(id)?;
        let mut cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)?;
        for e in cpuid.as_mut_slice() {
            match e.function {
                1 => {
                    e.ebx = e.ebx & 0x00ff_ffff | (id as u32) << 24;
                    e.ecx |= HYPERVISOR;
                }
                0xb | 0x1f => e.edx = id as u32,
                _ => {}
            }
        }
        vcpu.set_cpuid2(&cpuid)?;
        // As firmware leaves it: fast strings on. Without it Linux drops ERMS but not FSRM, and patches its memmove wrongly.
        let fast_strings = kvm_msr_entry { index: MISC_ENABLE, data: 1, ..Default::default() };
        vcpu.set_msrs(&Msrs::from_entries(&[fast_strings])?)?;
        if id == 0 {
            start_in_long_mode(&vcpu)?;
            vcpu.set_mp_state(kvm_mp_state { mp_state: KVM_MP_STATE_RUNNABLE })?;
        }
        let (vm, serial) = (vm.clone(), serial.clone());
        threads.push(std::thread::spawn(move || {
            let ended = processor(vcpu, &vm, &serial);
            if let Ok(mut serial) = serial.lock() {
                let _ = serial.flush();
            }
            match ended {
                Ok(how) => {
                    println!("vmm: processor {id} ended the machine by {how}");
                    std::process::exit(0);
                }
                Err(e) => {
                    eprintln!("vmm: processor {id}: {e}");
                    std::process::exit(1);
                }
            }
        }));
    }
    for t in threads {
        let _ = t.join();
    }
    Ok(())
}

fn put(memory: &mut [u8], at: usize, data: &[u8]) -> Result<()> {
    memory.get_mut(at..at + data.len()).ok_or("the image does not fit the guest's memory")?.copy_from_slice(data);
    Ok(())
}

/// Place kernel, initramfs, command line, boot parameters, page tables and an MP table.
fn load(memory: &mut [u8], kernel: &[u8], initrd: &[u8], command_line: &str, vcpus: u64) -> Result<()> {
    if kernel.get(0x202..0x206) != Some(b"HdrS") {
        return Err("the kernel is no bzImage".into());
    }
    let setup_sectors = if kernel[0x1f1] == 0 { 4 } else { kernel[0x1f1] as usize };
    put(memory, KERNEL, &kernel[(setup_sectors + 1) * 512..])?;
    let header_end = 0x202 + kernel[0x201] as usize;
    put(memory, BOOT_PARAMS + 0x1f1, &kernel[0x1f1..header_end])?;
    let initrd_at = (memory.len() - initrd.len() - 0x10_0000) & !0xfff;
    put(memory, initrd_at, initrd)?;
    put(memory, COMMAND_LINE, command_line.as_bytes())?;
    put(memory, BOOT_PARAMS + 0x210, &[0xff])?;
    put(memory, BOOT_PARAMS + 0x218, &(initrd_at as u32).to_le_bytes())?;
    put(memory, BOOT_PARAMS + 0x21c, &(initrd.len() as u32).to_le_bytes())?;
    put(memory, BOOT_PARAMS + 0x228, &(COMMAND_LINE as u32).to_le_bytes())?;
    // E820: low memory, then everything from 1 MiB.
    let map = [(0u64, 0x9_f000u64), (0x10_0000, memory.len() as u64 - 0x10_0000)];
    put(memory, BOOT_PARAMS + 0x1e8, &[map.len() as u8])?;
    for (i, (start, length)) in map.into_iter().enumerate() {
        let at = BOOT_PARAMS + 0x2d0 + 20 * i;
        put(memory, at, &start.to_le_bytes())?;
        put(memory, at + 8, &length.to_le_bytes())?;
        put(memory, at + 16, &1u32.to_le_bytes())?;
    }
    put(memory, PAGE_TABLES, &(PAGE_TABLES as u64 + 0x1003).to_le_bytes())?;
    put(memory, PAGE_TABLES + 0x1000, &(PAGE_TABLES as u64 + 0x2003).to_le_bytes())?;
    for i in 0..512u64 {
        put(memory, PAGE_TABLES + 0x2000 + 8 * i as usize, &(i << 21 | 0x83).to_le_bytes())?;
    }
    put(memory, acpi::ADDRESS, &acpi::tables(vcpus))?;
    put(memory, 0x9_fc00, &mp_table(vcpus))
}

/// The MultiProcessor Specification's floating pointer and table: processors, one ISA bus, an I/O APIC and its ISA interrupts.
fn mp_table(vcpus: u64) -> Vec<u8> {
    let mut entries: Vec<u8> = Vec::new();
    let mut count = 0u16;
    let mut add = |entries: &mut Vec<u8>, bytes: &[u8]| {
        entries.extend_from_slice(bytes);
        count += 1;
    };
    for id in 0..vcpus as u8 {
        let flags = if id == 0 { 3 } else { 1 };
        add(&mut entries, &[0, id, 0x14, flags, 0x54, 6, 0, 0, 0xff, 0xfb, 0xeb, 0x0f, 0, 0, 0, 0, 0, 0, 0, 0]);
    }
    add(&mut entries, b"\x01\x00ISA   ");
    let ioapic = vcpus as u8;
    add(&mut entries, &[2, ioapic, 0x11, 1, 0, 0, 0xc0, 0xfe]);
    for irq in 0..16u8 {
        if irq != 2 {
            add(&mut entries, &[3, 0, 0, 0, 0, irq, ioapic, irq]);
        }
    }
    add(&mut entries, &[4, 3, 0, 0, 0, 0, 0, 0]);
    add(&mut entries, &[4, 1, 0, 0, 0, 0, 0xff, 1]);
    let mut table = b"PCMP".to_vec();
    table.extend((44 + entries.len() as u16).to_le_bytes());
    table.extend([4, 0]);
    table.extend(b"UNDERVISL2          ");
    table.extend([0; 6]);
    table.extend(count.to_le_bytes());
    table.extend(0xfee0_0000u32.to_le_bytes());
    table.extend([0; 4]);
    table.extend(entries);
    table[7] = checksum(&table);
    let mut pointer = b"_MP_".to_vec();
    pointer.extend(0x9_fc10u32.to_le_bytes());
    pointer.extend([1, 4, 0, 0, 0, 0, 0, 0]);
    pointer[10] = checksum(&pointer);
    pointer.extend(table);
    pointer
}

/// The byte that makes the sum of `bytes` and itself zero.
pub fn checksum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0u8, |a, b| a.wrapping_add(*b)).wrapping_neg()
}

/// The state that the 64-bit boot protocol asks for.
fn start_in_long_mode(vcpu: &VcpuFd) -> Result<()> {
    let mut s = vcpu.get_sregs()?;
    let flat = |selector, type_, long: bool| kvm_segment {
        base: 0,
        limit: u32::MAX,
        selector,
        type_,
        present: 1,
        dpl: 0,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        avl: 0,
        unusable: 0,
        padding: 0,
    };
    s.cs = flat(0x10, 11, true);
    s.ds = flat(0x18, 3, false);
    (s.es, s.ss, s.fs, s.gs) = (s.ds, s.ds, s.ds, s.ds);
    s.cr3 = PAGE_TABLES as u64;
    s.cr4 = 0x20;
    s.cr0 = 0x8000_0011;
    s.efer = 0x500;
    vcpu.set_sregs(&s)?;
    let regs = kvm_regs { rip: KERNEL as u64 + 0x200, rsi: BOOT_PARAMS as u64, rsp: 0x8000, rflags: 2, ..Default::default() };
    vcpu.set_regs(&regs)?;
    Ok(())
}

/// The registers of a 16550 that a console needs.
#[derive(Default)]
struct Serial {
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    scratch: u8,
    /// Sent, and not yet printed: a write for each byte would cost more than the guest's exits.
    line: Vec<u8>,
}

static CMOS_INDEX: AtomicU8 = AtomicU8::new(0);
static PM1_ENABLE: AtomicU16 = AtomicU16::new(0);

/// The real-time clock's registers: it stands at 1 January 2026, and never updates.
fn cmos(index: u8) -> u8 {
    match index {
        6 => 5,
        7 | 8 => 1,
        9 => 0x26,
        0xa => 0x26,
        0xb => 0x02,
        0xd => 0x80,
        0x32 => 0x20,
        _ => 0,
    }
}

/// Run one processor until the machine ends, and say by what.
fn processor(mut vcpu: VcpuFd, vm: &VmFd, serial: &Mutex<Serial>) -> Result<&'static str> {
    loop {
        match vcpu.run() {
            Ok(VcpuExit::IoOut(port, data)) => match port {
                0x3f8..=0x3ff => {
                    let mut s = serial.lock().map_err(|_| "a processor thread died")?;
                    if s.write(port - 0x3f8, data[0])? {
                        vm.set_irq_line(4, true)?;
                        vm.set_irq_line(4, false)?;
                    }
                }
                // Keyboard controller reset, and reset control: the guest is done.
                0x64 if data[0] == 0xfe => return Ok("a keyboard controller reset"),
                0xcf9 if data[0] & 4 != 0 => return Ok("a reset"),
                0x602 if data.len() == 2 => PM1_ENABLE.store(u16::from_le_bytes([data[0], data[1]]), Ordering::Relaxed),
                // PM1 control: SLP_EN.
                0x604 if data.len() == 2 && data[1] & 0x20 != 0 => return Ok("a power-off"),
                0x70 => CMOS_INDEX.store(data[0] & 0x7f, Ordering::Relaxed),
                _ => {}
            },
            Ok(VcpuExit::IoIn(port, data)) => {
                data.fill(0xff);
                match port {
                    0x3f8..=0x3ff => data[0] = serial.lock().map_err(|_| "a processor thread died")?.read(port - 0x3f8),
                    acpi::PM1..0x608 => {
                        let enable = if port == acpi::PM1 + 2 { PM1_ENABLE.load(Ordering::Relaxed) } else { 0 };
                        data.iter_mut().zip(enable.to_le_bytes().into_iter().chain([0; 6])).for_each(|(d, e)| *d = e);
                    }
                    0x71 => data[0] = cmos(CMOS_INDEX.load(Ordering::Relaxed)),
                    // Nothing else is there, also no keyboard controller, for which a guest would look long.
                    _ => {}
                }
            }
            Ok(VcpuExit::MmioRead(_, data)) => data.fill(0xff),
            Ok(VcpuExit::MmioWrite(..)) => {}
            Ok(VcpuExit::Hlt) => {}
            Ok(VcpuExit::Shutdown) => return Ok("a triple fault"),
            Ok(VcpuExit::SystemEvent(..)) => return Ok("a system event"),
            Ok(other) => return Err(format!("unexpected exit: {other:?}").into()),
            Err(e) if e.errno() == 4 || e.errno() == 11 => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Serial {
    fn flush(&mut self) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        out.write_all(&self.line)?;
        self.line.clear();
        out.flush()
    }

    fn read(&self, register: u16) -> u8 {
        match register {
            1 if self.line_control & 0x80 == 0 => self.interrupt_enable,
            2 if self.interrupt_enable & 2 != 0 => 0x02,
            2 => 0x01,
            3 => self.line_control,
            4 => self.modem_control,
            5 => 0x60,
            6 => 0xb0,
            7 => self.scratch,
            _ => 0,
        }
    }

    /// Returns whether to pulse the interrupt line: the transmitter is always empty.
    fn write(&mut self, register: u16, value: u8) -> Result<bool> {
        let latch = self.line_control & 0x80 != 0;
        match register {
            0 if !latch => {
                self.line.push(value);
                if value == b'\n' || self.line.len() >= 256 {
                    self.flush()?;
                }
            }
            1 if !latch => self.interrupt_enable = value,
            3 => self.line_control = value,
            4 => self.modem_control = value,
            7 => self.scratch = value,
            _ => {}
        }
        Ok(register < 2 && !latch && self.interrupt_enable & 2 != 0)
    }
}

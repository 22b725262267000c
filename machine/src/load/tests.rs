//! Each format loads as its specification says; each bad input is refused with the error that names its fault.

use proptest::prelude::*;
use undervisor_cpu::Shared;
use undervisor_mmu::GuestMemory;

use super::*;
use crate::config::{Image, MachineConfig};
use crate::error::MachineError;

fn ram(mib: u64) -> Ram {
    Ram::new(Shared::new(GuestMemory::new(mib << 20, crate::memory::LOW_RAM_LIMIT, &[]).unwrap()))
}

fn kernel(data: Vec<u8>) -> Kernel {
    Kernel { image: Image::new("vmlinuz", data), command_line: "quiet".into(), ..Kernel::default() }
}

fn load_in(mib: u64, k: &Kernel) -> (Ram, Result<Entry, LoadError>) {
    let ram = ram(mib);
    let entry = super::load(&Boot::Kernel(k.clone()), &ram, 0xe_0000);
    (ram, entry)
}

fn put_at(data: &mut [u8], at: usize, bytes: &[u8]) {
    data[at..at + bytes.len()].copy_from_slice(bytes);
}

/// A bzImage of protocol 2.15 with `payload` bytes of protected-mode code and a need of 4 MiB.
fn bzimage(payload: usize, xloadflags: u16) -> Vec<u8> {
    let mut d = vec![0x90; 1024 + payload];
    d[..1024].fill(0);
    d[0x1f1] = 1;
    put_at(&mut d, 0x1f4, &((payload as u32).div_ceil(16)).to_le_bytes());
    put_at(&mut d, 0x1fe, &[0x55, 0xaa, 0xeb, 0x66]);
    put_at(&mut d, 0x202, b"HdrS");
    put_at(&mut d, 0x206, &0x20fu16.to_le_bytes());
    d[0x211] = 1;
    put_at(&mut d, 0x22c, &0x7fff_ffffu32.to_le_bytes());
    d[0x234] = 1;
    put_at(&mut d, 0x236, &xloadflags.to_le_bytes());
    put_at(&mut d, 0x238, &255u32.to_le_bytes());
    put_at(&mut d, 0x258, &0x100_0000u64.to_le_bytes());
    put_at(&mut d, 0x260, &(4u32 << 20).to_le_bytes());
    d
}

/// An ELF of one segment at `physical`, with an optional note segment.
fn elf_file(is64: bool, physical: u64, virtual_address: u64, entry: u64, code: &[u8], note: Option<&[u8]>) -> Vec<u8> {
    let (header, ph) = if is64 { (64, 56) } else { (52, 32) };
    let mut d = b"\x7fELF".to_vec();
    d.extend([if is64 { 2 } else { 1 }, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    d.extend(2u16.to_le_bytes());
    d.extend(if is64 { 62u16 } else { 3 }.to_le_bytes());
    d.extend(1u32.to_le_bytes());
    let word = |d: &mut Vec<u8>, v: u64| {
        if is64 { d.extend(v.to_le_bytes()) } else { d.extend((v as u32).to_le_bytes()) }
    };
    word(&mut d, entry);
    word(&mut d, header as u64);
    word(&mut d, 0);
    d.extend(0u32.to_le_bytes());
    for v in [header as u16, ph as u16, 1 + note.is_some() as u16, 0, 0, 0] {
        d.extend(v.to_le_bytes());
    }
    let at = 512u64;
    let program = |d: &mut Vec<u8>, kind: u32, offset: u64, va: u64, pa: u64, file: u64, memory: u64| {
        d.extend(kind.to_le_bytes());
        if is64 {
            d.extend(7u32.to_le_bytes());
        }
        for v in [offset, va, pa, file, memory] {
            word(d, v);
        }
        if !is64 {
            d.extend(7u32.to_le_bytes());
        }
        word(d, 4);
    };
    program(&mut d, 1, at, virtual_address, physical, code.len() as u64, code.len() as u64 + 0x1000);
    if let Some(note) = note {
        let offset = at + code.len() as u64;
        program(&mut d, 4, offset, 0, 0, note.len() as u64, note.len() as u64);
    }
    d.resize(at as usize, 0);
    d.extend(code);
    d.extend(note.unwrap_or(&[]));
    d
}

fn multiboot_header(flags: u32) -> Vec<u8> {
    let magic = 0x1bad_b002u32;
    [magic, flags, 0u32.wrapping_sub(magic.wrapping_add(flags))].iter().flat_map(|w| w.to_le_bytes()).collect()
}

fn xen_note(kind: u32, entry: u32) -> Vec<u8> {
    let mut n = Vec::new();
    for v in [4u32, 4, kind] {
        n.extend(v.to_le_bytes());
    }
    n.extend(b"Xen\0");
    n.extend(entry.to_le_bytes());
    n
}

fn string(ram: &Ram, at: u64) -> String {
    let mut s = Vec::new();
    for i in 0.. {
        let mut b = [0];
        ram.read(at + i, &mut b).unwrap();
        if b[0] == 0 {
            break;
        }
        s.push(b[0]);
    }
    String::from_utf8(s).unwrap()
}

// ---- Linux ----

#[test]
fn bzimage_enters_at_200h_in_long_mode_with_boot_params() {
    let mut k = kernel(bzimage(5000, 1));
    k.initrd = Some(Image::new("initrd", vec![7; 5000]));
    let (ram, entry) = load_in(64, &k);
    let Entry::Long { rip, rsi, code, data } = entry.unwrap() else { panic!("not long mode") };
    assert_eq!((rip, code, data), (0x100_0200, 0x10, 0x18));
    assert_eq!(ram.read_u32(rip).unwrap(), 0x9090_9090);
    assert_eq!(ram.read_u32(rsi + 0x202).unwrap(), u32::from_le_bytes(*b"HdrS"));
    assert_eq!(ram.read_u64(rsi + 0x70).unwrap(), 0xe_0000);
    assert_eq!(string(&ram, ram.read_u32(rsi + 0x228).unwrap() as u64), "quiet");
    let (at, size) = (ram.read_u32(rsi + 0x218).unwrap() as u64, ram.read_u32(rsi + 0x21c).unwrap());
    assert_eq!(size, 5000);
    assert!(at % 4096 == 0 && at + 5000 <= 64 << 20 && at + 5000 + 4096 > 64 << 20);
    assert_eq!(ram.read_u32(at).unwrap(), 0x0707_0707);
    let mut count = [0];
    ram.read(rsi + 0x1e8, &mut count).unwrap();
    assert_eq!(count[0] as usize, ram.map().len());
    assert_eq!(ram.read_u64(rsi + 0x2d0 + 8).unwrap(), 0x9_fc00);
}

#[test]
fn bzimage_without_64_bit_entry_starts_in_protected_mode() {
    let (_, entry) = load_in(64, &kernel(bzimage(5000, 0)));
    assert!(matches!(entry.unwrap(), Entry::Flat32 { eip: 0x100_0000, esi: 0x1_0000, .. }));
}

#[test]
fn relocatable_kernel_moves_down_in_small_memory() {
    let (_, entry) = load_in(8, &kernel(bzimage(5000, 1)));
    assert!(matches!(entry.unwrap(), Entry::Long { rip: 0x10_0200, .. }));
    let (_, entry) = load_in(4, &kernel(bzimage(5000, 1)));
    assert!(matches!(entry, Err(LoadError::DoesNotFit { .. })), "{entry:?}");
}

#[test]
fn initrd_larger_than_memory_is_refused() {
    let mut k = kernel(bzimage(5000, 1));
    k.initrd = Some(Image::new("initrd", vec![7; 80 << 20]));
    let (_, entry) = load_in(64, &k);
    let Err(e @ LoadError::NoRoom { .. }) = entry else { panic!("{entry:?}") };
    assert!(e.to_string().contains("larger --memory"), "{e}");
    k.initrd = Some(Image::new("initrd", vec![7; 61 << 20]));
    assert!(matches!(load_in(64, &k).1, Err(LoadError::NoRoom { .. })));
    k.initrd = Some(Image::new("initrd", Vec::new()));
    assert!(matches!(load_in(64, &k).1, Err(LoadError::Empty { .. })));
}

#[test]
fn truncated_bzimage_is_refused_wherever_it_ends() {
    let whole = bzimage(5000, 1);
    for n in [0x20a, 0x268, 700, 1024, 3000, 1024 + 4900] {
        let (_, entry) = load_in(64, &kernel(whole[..n].to_vec()));
        assert!(matches!(entry, Err(LoadError::Truncated { .. })), "{n}: {entry:?}");
    }
}

#[test]
fn long_command_lines_and_zimages_and_modules_are_refused() {
    let mut k = kernel(bzimage(5000, 1));
    k.command_line = "x".repeat(256);
    assert!(matches!(load_in(64, &k).1, Err(LoadError::CommandLineTooLong { length: 256, most: 255 })));
    let mut low = bzimage(5000, 1);
    low[0x211] = 0;
    assert!(matches!(load_in(64, &kernel(low)).1, Err(LoadError::BadHeader { .. })));
    let mut k = kernel(bzimage(5000, 1));
    k.modules.push(Module::default());
    assert!(matches!(load_in(64, &k).1, Err(LoadError::NotSupported(..))));
}

// ---- multiboot ----

#[test]
fn multiboot_elf_gets_its_modules_and_memory_map() {
    let mut code = multiboot_header(3);
    code.resize(64, 0x90);
    let mut k = kernel(elf_file(false, 0x40_0000, 0x40_0000, 0x40_000c, &code, None));
    k.initrd = Some(Image::new("env", b"A=1\n".to_vec()));
    k.modules.push(Module { image: Image::new("mod", vec![5; 6000]), arguments: "fast".into() });
    let (ram, entry) = load_in(32, &k);
    let Entry::Flat32 { eip, eax, ebx, .. } = entry.unwrap() else { panic!() };
    assert_eq!((eip, eax), (0x40_000c, 0x2bad_b002));
    let word = |at: u64| ram.read_u32(ebx as u64 + at).unwrap() as u64;
    assert_eq!(word(0) & 0x4d, 0x4d);
    assert_eq!((word(4), word(8)), (639, (32 << 10) - 1024));
    assert_eq!(string(&ram, word(16)), "vmlinuz quiet");
    assert_eq!(word(20), 2);
    let list = word(24);
    let module = |i: u64, at: u64| ram.read_u32(list + 16 * i + at).unwrap() as u64;
    assert_eq!(module(0, 4) - module(0, 0), 4);
    assert_eq!(ram.read_u32(module(0, 0)).unwrap(), u32::from_le_bytes(*b"A=1\n"));
    assert_eq!(string(&ram, module(0, 8)), "env");
    assert_eq!(module(1, 4) - module(1, 0), 6000);
    assert_eq!((module(1, 0) % 4096, string(&ram, module(1, 8))), (0, "mod fast".into()));
    // The map holds all of RAM.
    let (length, at) = (word(44), word(48));
    let ram_bytes: u64 = (0..length / 24)
        .filter(|i| ram.read_u32(at + 24 * i + 20).unwrap() == 1)
        .map(|i| ram.read_u64(at + 24 * i + 12).unwrap())
        .sum();
    assert_eq!(ram_bytes, (31 << 20) + 0x9_fc00);
}

#[test]
fn multiboot_address_fields_place_a_raw_image() {
    let mut d = vec![0; 16];
    d.extend(multiboot_header(1 << 16));
    // header_addr, load_addr, load_end_addr, bss_end_addr, entry_addr
    for v in [0x20_0010u32, 0x20_0000, 0x20_0100, 0x20_2000, 0x20_0030] {
        d.extend(v.to_le_bytes());
    }
    d.resize(0x100, 0xcc);
    let (ram, entry) = load_in(16, &kernel(d.clone()));
    assert!(matches!(entry.unwrap(), Entry::Flat32 { eip: 0x20_0030, .. }));
    assert_eq!(ram.read_u32(0x20_0010).unwrap(), 0x1bad_b002);
    assert_eq!(ram.read_u32(0x20_00fc).unwrap(), 0xcccc_cccc);
    d.truncate(0x80);
    assert!(matches!(load_in(16, &kernel(d)).1, Err(LoadError::Truncated { .. })));
}

#[test]
fn multiboot_faults_are_named() {
    let mut code = multiboot_header(8);
    code.resize(64, 0);
    let k = kernel(elf_file(false, 0x40_0000, 0x40_0000, 0x40_0000, &code, None));
    assert!(matches!(load_in(16, &k).1, Err(LoadError::BadHeader { .. })));
    let mut code = multiboot_header(0);
    code.resize(64, 0);
    let mut k = kernel(elf_file(false, 0x40_0000, 0x40_0000, 0x40_0000, &code, None));
    k.modules.push(Module { image: Image::new("big", vec![1; 16 << 20]), arguments: String::new() });
    assert!(matches!(load_in(16, &k).1, Err(LoadError::NoRoom { .. })));
    let k = kernel(elf_file(false, 0x400_0000, 0x400_0000, 0x400_0000, &code, None));
    assert!(matches!(load_in(16, &k).1, Err(LoadError::DoesNotFit { .. })));
}

// ---- PVH and plain ELF ----

#[test]
fn pvh_enters_by_its_note_with_start_info() {
    let mut k =
        kernel(elf_file(true, 0x20_0000, 0xffff_ffff_8020_0000, 0x20_0000, &[0x90; 32], Some(&xen_note(18, 0x20_0008))));
    k.initrd = Some(Image::new("initrd", vec![3; 100]));
    let (ram, entry) = load_in(16, &k);
    let Entry::Flat32 { eip, ebx, .. } = entry.unwrap() else { panic!() };
    assert_eq!(eip, 0x20_0008);
    let info = ebx as u64;
    assert_eq!((ram.read_u32(info), ram.read_u32(info + 4), ram.read_u32(info + 12)), (Ok(0x336e_c578), Ok(1), Ok(1)));
    let modules = ram.read_u64(info + 16).unwrap();
    assert_eq!(ram.read_u64(modules + 8), Ok(100));
    assert_eq!(ram.read_u32(ram.read_u64(modules).unwrap()), Ok(0x0303_0303));
    assert_eq!(string(&ram, ram.read_u64(info + 24).unwrap()), "quiet");
    assert_eq!(ram.read_u64(info + 32), Ok(0xe_0000));
    assert_eq!(ram.read_u32(info + 48).unwrap() as usize, ram.map().len());
}

#[test]
fn plain_elf_starts_in_the_mode_of_its_class() {
    let note = xen_note(1, 0);
    let k = kernel(elf_file(true, 0x20_0000, 0xffff_ffff_8020_0000, 0xffff_ffff_8020_0004, &[0x90; 32], Some(&note)));
    assert_eq!(recognise(&k).unwrap(), Format::Elf);
    assert!(matches!(load_in(16, &k).1.unwrap(), Entry::Long { rip: 0x20_0004, .. }));
    let k = kernel(elf_file(false, 0x20_0000, 0x20_0000, 0x20_0010, &[0x90; 32], None));
    assert!(matches!(load_in(16, &k).1.unwrap(), Entry::Flat32 { eip: 0x20_0010, .. }));
}

#[test]
fn bad_elf_files_are_refused() {
    let good = elf_file(true, 0x20_0000, 0x20_0000, 0x20_0000, &[0x90; 64], None);
    for n in [4, 20, 63, 100, 530] {
        let (_, entry) = load_in(16, &kernel(good[..n].to_vec()));
        assert!(matches!(entry, Err(LoadError::Truncated { .. } | LoadError::BadHeader { .. })), "{n}: {entry:?}");
    }
    let mut arm = good.clone();
    put_at(&mut arm, 18, &183u16.to_le_bytes());
    let (_, entry) = load_in(16, &kernel(arm));
    assert!(matches!(&entry, Err(e @ LoadError::BadHeader { .. }) if e.to_string().contains("not x86")), "{entry:?}");
    let mut object = good;
    put_at(&mut object, 16, &1u16.to_le_bytes());
    assert!(matches!(load_in(16, &kernel(object)).1, Err(LoadError::BadHeader { .. })));
}

// ---- flat, firmware, nothing at all ----

#[test]
fn flat_binaries_start_in_real_mode() {
    let (ram, entry) = load_in(1, &kernel(vec![0xf4, 0xeb, 0xfd]));
    assert_eq!(entry.unwrap(), Entry::Real { cs: 0, ip: 0x7c00, edx: 0x80 });
    assert_eq!(ram.read_u16(0x7c00), Ok(0xebf4));
    let mut k = kernel(b"text that is code".to_vec());
    k.flat_at = Some(0x2_0000);
    assert_eq!(load_in(1, &k).1.unwrap(), Entry::Real { cs: 0x2000, ip: 0, edx: 0x80 });
    k.flat_at = Some(0x10_0000);
    assert!(load_in(4, &k).1.is_err());
    assert!(matches!(load_in(1, &kernel(vec![0xf4; 700_000])).1, Err(LoadError::DoesNotFit { .. })));
}

#[test]
fn files_that_are_something_else_are_refused_by_name() {
    for (data, says) in [
        (&b"\x1f\x8b\x08rest"[..], "gzip"),
        (b"#!/bin/sh\necho hello\n", "text"),
        (b"QFI\xfb\0\0\0\x03", "qcow2"),
        (b"MZ\x90\0", "truncated bzImage"),
        (&[0; 64], "zeros"),
    ] {
        let (_, entry) = load_in(16, &kernel(data.to_vec()));
        let Err(e @ LoadError::UnknownFormat { .. }) = entry else { panic!("{says}: {entry:?}") };
        assert!(e.to_string().contains(says), "{e}");
    }
    assert!(matches!(load_in(16, &kernel(Vec::new())).1, Err(LoadError::Empty { .. })));
}

#[test]
fn an_absent_file_is_named() {
    let e = Image::read("/nonexistent/vmlinuz").unwrap_err();
    assert!(e.to_string().contains("/nonexistent/vmlinuz"), "{e}");
}

#[test]
fn firmware_is_checked_and_appears_below_1_mib() {
    let firmware = |n: usize| MachineConfig::new().memory(4 << 20).firmware(Image::new("rom", vec![0xea; n])).build();
    assert!(matches!(firmware(0), Err(MachineError::Load(LoadError::Empty { .. }))));
    for n in [4096, 65_537, 17 << 20] {
        assert!(matches!(firmware(n), Err(MachineError::Load(LoadError::BadFirmwareSize(_)))), "{n}");
    }
    let m = firmware(256 << 10).unwrap();
    assert_eq!(m.ram().read_u32(0xffff_fff0), Ok(0xeaea_eaea));
    assert_eq!(m.ram().read_u32(0xe_0000), Ok(0xeaea_eaea));
    assert_eq!(m.cpus()[0].state.rip(), 0xfff0);
    let m = firmware(64 << 10).unwrap();
    assert_eq!(m.ram().read_u32(0xf_0000), Ok(0xeaea_eaea));
    assert!(m.ram().read_u32(0xe_0000).is_err() && m.ram().read_u32(0xd_0000).is_err(), "nothing there");
}

#[test]
fn impossible_machines_are_refused() {
    for bytes in [0, 4096, (1 << 20) + 1] {
        assert!(matches!(MachineConfig::new().memory(bytes).build(), Err(MachineError::BadMemory(_))), "{bytes}");
    }
    let Err(e) = MachineConfig::new().memory(1 << 60).build() else { panic!("an exbibyte") };
    assert!(e.to_string().contains("smaller --memory"), "{e}");
    for n in [0, 65] {
        assert!(matches!(MachineConfig::new().memory(1 << 20).cpus(n).build(), Err(MachineError::BadCpuCount(_))));
    }
}

// ---- hostile bytes ----

/// Whatever a file holds, loading ends with an entry or an error.
fn survives(data: Vec<u8>) {
    let mut k = kernel(data);
    k.initrd = Some(Image::new("initrd", vec![1; 100]));
    let _ = load_in(2, &k);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn broken_bzimages_do_no_harm(changes in prop::collection::vec((0x1f1usize..0x270, any::<u8>()), 0..12), cut in 0usize..3000) {
        let mut d = bzimage(1976, 1);
        changes.iter().for_each(|(at, b)| d[*at] = *b);
        d.truncate(cut.max(1));
        survives(d);
    }

    #[test]
    fn broken_elf_files_do_no_harm(is64: bool, changes in prop::collection::vec((4usize..596, any::<u8>()), 0..12), multiboot: bool) {
        let mut code = if multiboot { multiboot_header(3) } else { vec![] };
        code.resize(64, 0x90);
        let mut d = elf_file(is64, 0x10_0000, 0x10_0000, 0x10_0000, &code, Some(&xen_note(18, 0x10_0000)));
        changes.iter().for_each(|(at, b)| d[*at] = *b);
        survives(d);
    }

    #[test]
    fn broken_multiboot_images_do_no_harm(addresses in prop::array::uniform5(any::<u32>()), near: bool, length in 32usize..400) {
        let mut d = multiboot_header(1 << 16);
        for a in addresses {
            d.extend(if near { 0x10_0000 + (a & 0xfff) } else { a }.to_le_bytes());
        }
        d.resize(length, 0x90);
        survives(d);
    }
}

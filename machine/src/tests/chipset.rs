//! Guests that make the chipset rearrange memory, and one that has a PCI device interrupt it by MSI.

use undervisor_devices::virtio::{Rng, VirtioPci};

use super::*;

/// Print a byte of memory on the debug console.
fn show(a: &mut CodeAssembler, byte: AsmMemoryOperand) -> Result<(), IcedError> {
    a.mov(al, byte)?;
    a.out(0xe9, al)
}

#[test]
fn the_a20_gate_by_every_way() {
    let console = BufferBackend::new();
    let config = real_mode(1, |a| {
        a.xor(ax, ax)?;
        a.mov(ds, ax)?;
        a.mov(ax, 0xffff)?;
        a.mov(es, ax)?;
        let near = byte_ptr(0x500);
        let far = byte_ptr(0x510).es();
        a.mov(near, 0x11)?;
        a.mov(far, 0x22)?;
        show(a, near)?;
        // Port 92H closes it: the addresses wrap.
        a.in_(al, 0x92)?;
        a.and(al, !2)?;
        a.out(0x92, al)?;
        a.mov(far, 0x33)?;
        show(a, near)?;
        // The keyboard controller's output port opens it, which port 92H shows.
        out(a, 0x64, 0xd1)?;
        out(a, 0x60, 0xdf)?;
        show(a, far)?;
        a.in_(al, 0x92)?;
        a.and(al, 2)?;
        a.out(0xe9, al)?;
        // And its commands close and open it, which its output port shows.
        for (command, byte) in [(0xdd, 0), (0xdf, 2)] {
            out(a, 0x64, command)?;
            show(a, far)?;
            out(a, 0x64, 0xd0)?;
            a.in_(al, 0x60)?;
            a.and(al, 2)?;
            a.sub(al, byte)?;
            a.out(0xe9, al)?;
        }
        out(a, 0xf4, 0)
    });
    let mut m = config.debug_console(console.clone()).build().unwrap();
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(0));
    assert_eq!(console.output(), [0x11, 0x33, 0x22, 2, 0x33, 0, 0x22, 0]);
    // It does not outlast a reset.
    let now = m.progress().time;
    m.board_mut().reset(now);
    assert!(m.board().a20());
}

/// A ROM of 128 KiB that goes through the attributes of its own segment, F0000H.
fn shadowing_rom() -> Vec<u8> {
    let mut a = CodeAssembler::new(16).unwrap();
    let mut build = || -> Result<(), IcedError> {
        let attribute = |a: &mut CodeAssembler, value: u32| {
            a.mov(eax, 0x8000_0090u32)?;
            a.mov(dx, 0xcf8)?;
            a.out(dx, eax)?;
            a.mov(dx, 0xcfc)?;
            a.mov(al, value)?;
            a.out(dx, al)
        };
        a.mov(ax, 0xf000)?;
        a.mov(ds, ax)?;
        a.mov(es, ax)?;
        a.cld()?;
        // ROM only.
        a.mov(byte_ptr(0), 0x22)?;
        show(&mut a, byte_ptr(0))?;
        // Reads from ROM, writes to RAM: the whole segment onto itself, and a change.
        attribute(&mut a, 0x20)?;
        a.xor(si, si)?;
        a.xor(di, di)?;
        a.mov(cx, 0x4000)?;
        a.rep().movsd()?;
        a.mov(byte_ptr(0), 0x33)?;
        show(&mut a, byte_ptr(0))?;
        // RAM, running from it.
        attribute(&mut a, 0x30)?;
        show(&mut a, byte_ptr(0))?;
        a.mov(byte_ptr(1), 0x44)?;
        // Reads only.
        attribute(&mut a, 0x10)?;
        a.mov(byte_ptr(1), 0x55)?;
        show(&mut a, byte_ptr(1))?;
        attribute(&mut a, 0)?;
        show(&mut a, byte_ptr(0))?;
        out(&mut a, 0xf4, 0)
    };
    build().unwrap();
    let code = a.assemble(0x100).unwrap();
    let mut rom = vec![0xff; 128 << 10];
    rom[0x1_0000] = 0x11;
    rom[0x1_0100..][..code.len()].copy_from_slice(&code);
    // The reset vector: JMP F000:0100.
    rom[0x1_fff0..][..5].copy_from_slice(&[0xea, 0, 1, 0, 0xf0]);
    rom
}

#[test]
fn firmware_shadows_itself() {
    let console = BufferBackend::new();
    let config = MachineConfig::new().memory(4 << 20).instruction_limit(LIMIT).firmware(Image::new("rom", shadowing_rom()));
    let mut m = config.debug_console(console.clone()).build().unwrap();
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(0));
    assert_eq!(console.output(), [0x11, 0x11, 0x33, 0x44, 0x11]);
    // The same again after a reset, with what is in RAM by then.
    m.reset().unwrap();
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(0));
    assert_eq!(console.output()[5..], [0x11, 0x11, 0x33, 0x44, 0x11]);
}

/// A driver of virtio-rng that finds the MSI capability, enables it, and makes two requests, the second while its vector is masked.
/// Leaves with the number of interrupts, or with what went wrong.
fn msi_driver(a: &mut CodeAssembler) -> Result<(), IcedError> {
    const COUNT: u64 = 0x6000;
    const IDT: u64 = 0x5000;
    const VECTOR: u64 = 0x41;
    const QUEUE: [u64; 3] = [0x8000, 0x9000, 0xa000];
    let (mut over, mut read, mut next, mut found) = (a.create_label(), a.create_label(), a.create_label(), a.create_label());
    a.jmp(over)?;
    // At 0x100002, the handler.
    a.inc(dword_ptr(COUNT))?;
    a.mov(dword_ptr(0xfee0_00b0u32), 0)?;
    a.iretd()?;
    // EAX := configuration register EAX of the function in slot 1.
    a.set_label(&mut read)?;
    a.or(eax, 0x8000_0800u32 as i32)?;
    a.mov(dx, 0xcf8)?;
    a.out(dx, eax)?;
    a.mov(dx, 0xcfc)?;
    a.in_(eax, dx)?;
    a.ret()?;
    a.set_label(&mut over)?;
    a.mov(dword_ptr(IDT + 8 * VECTOR), 0x8_0002)?;
    a.mov(dword_ptr(IDT + 8 * VECTOR + 4), 0x10_8e00)?;
    a.mov(word_ptr(0x5800), 0x7ff)?;
    a.mov(dword_ptr(0x5802), IDT as i32)?;
    a.lidt(fword_ptr(0x5800))?;
    a.mov(dword_ptr(0xfee0_00f0u32), 0x1ff)?;
    a.mov(dword_ptr(COUNT), 0)?;
    // EBX: the capability. ESI: the range of the virtio structures.
    a.mov(eax, 0x34)?;
    a.call(read)?;
    a.set_label(&mut next)?;
    a.movzx(ebx, al)?;
    a.mov(eax, ebx)?;
    a.call(read)?;
    a.cmp(al, 5)?;
    a.je(found)?;
    a.mov(al, ah)?;
    a.test(al, al)?;
    a.jne(next)?;
    out(a, 0xf4, 99)?;
    a.set_label(&mut found)?;
    let write = |a: &mut CodeAssembler, offset: i32, value: u32| {
        a.lea(eax, ebx + offset)?;
        a.call(read)?;
        a.mov(eax, value)?;
        a.out(dx, eax)
    };
    for (offset, value) in [(4, 0xfee0_0000), (8, 0), (12, VECTOR as u32), (16, 0), (0, 1 << 16)] {
        write(a, offset, value)?;
    }
    // Memory, master, INTx disable.
    a.mov(eax, 4)?;
    a.call(read)?;
    a.or(eax, 0x406)?;
    a.out(dx, eax)?;
    a.mov(eax, 0x20)?;
    a.call(read)?;
    a.and(eax, !15)?;
    a.mov(esi, eax)?;
    a.mov(byte_ptr(esi + 0x14), 3)?;
    a.mov(dword_ptr(esi + 8), 1)?;
    a.mov(dword_ptr(esi + 12), 1)?;
    a.mov(byte_ptr(esi + 0x14), 0xb)?;
    a.mov(word_ptr(esi + 0x16), 0)?;
    a.mov(word_ptr(esi + 0x18), 8)?;
    for (i, at) in QUEUE.into_iter().enumerate() {
        a.mov(dword_ptr(esi + 0x20 + 8 * i as i32), at as i32)?;
    }
    a.mov(word_ptr(esi + 0x1c), 1)?;
    a.mov(byte_ptr(esi + 0x14), 0xf)?;
    // One descriptor: 64 bytes for the device to write.
    for (offset, value) in [(0, 0xb000), (4, 0), (8, 64), (12, 2)] {
        a.mov(dword_ptr(QUEUE[0] + offset), value)?;
    }
    let request = |a: &mut CodeAssembler, number: u64| {
        a.mov(word_ptr(QUEUE[1] + 2 + 2 * number), 0)?;
        a.mov(word_ptr(QUEUE[1] + 2), number as i32)?;
        a.mov(word_ptr(esi + 0x3000), 0)
    };
    let halt_until = |a: &mut CodeAssembler, count: i32| {
        let (mut again, mut done) = (a.create_label(), a.create_label());
        a.set_label(&mut again)?;
        a.cli()?;
        a.cmp(dword_ptr(COUNT), count)?;
        a.jae(done)?;
        a.sti()?;
        a.hlt()?;
        a.jmp(again)?;
        a.set_label(&mut done)?;
        a.nop()
    };
    request(a, 1)?;
    halt_until(a, 1)?;
    write(a, 16, 1)?;
    request(a, 2)?;
    a.sti()?;
    let mut used = a.create_label();
    a.set_label(&mut used)?;
    a.cmp(word_ptr(QUEUE[2] + 2), 2)?;
    a.jne(used)?;
    // Masked: it is pending.
    a.lea(eax, ebx + 20)?;
    a.call(read)?;
    let mut pending = a.create_label();
    a.cmp(eax, 1)?;
    a.je(pending)?;
    out(a, 0xf4, 98)?;
    a.set_label(&mut pending)?;
    let mut masked = a.create_label();
    a.cmp(dword_ptr(COUNT), 1)?;
    a.je(masked)?;
    out(a, 0xf4, 97)?;
    a.set_label(&mut masked)?;
    write(a, 16, 0)?;
    halt_until(a, 2)?;
    a.mov(eax, dword_ptr(COUNT))?;
    a.mov(dx, 0xf4)?;
    a.out(dx, al)
}

#[test]
fn a_driver_is_interrupted_by_msi() {
    let rng = VirtioPci::new(Rng::new(1));
    let mut m = flat32(MachineConfig::new().pci_device(Box::new(rng)), msi_driver);
    assert_eq!(m.run(&mut NoHost), StopReason::DebugExit(2));
    // Two messages, and nothing by a pin.
    assert_eq!(m.progress().device_interrupts, 2);
}

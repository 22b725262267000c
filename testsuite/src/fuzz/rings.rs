//! Virtio devices whose driver is hostile: any register writes, any rings.

use std::rc::Rc;

use undervisor_cpu::Shared;
use undervisor_devices::Wiring;
use undervisor_devices::chardev::BufferBackend;
use undervisor_devices::disk::MemoryDisk;
use undervisor_devices::pci::{Attachment, Bdf, PciHost};
use undervisor_devices::virtio::{Block, Console, VirtioDevice, VirtioPci};
use undervisor_machine::Ram;
use undervisor_mmu::GuestMemory;

use super::Bytes;

const MEMORY: u64 = 1 << 20;
const SLOT: u32 = 0x8000_0800;
/// Where a well-behaved driver keeps its rings.
const RINGS: u64 = 0x1000;

pub fn block(data: &[u8]) {
    drive(Block::new(Box::new(MemoryDisk(vec![5; 64 * 512])), "fuzz"), data);
}

pub fn console(data: &[u8]) {
    let backend = BufferBackend::new();
    backend.feed(b"input for the guest");
    drive(Console::new(Box::new(backend)), data);
}

fn drive(device: impl VirtioDevice + 'static, data: &[u8]) {
    let mut input = Bytes(data);
    let Ok(memory) = GuestMemory::new(MEMORY, MEMORY, &[]) else { return };
    let ram = Ram::new(Shared::new(memory));
    let wiring = Wiring::new();
    let mut host = PciHost::default();
    let attachment = Attachment {
        address: Bdf { bus: 0, device: 1, function: 0 },
        intx: wiring.line(17),
        messages: wiring.messages(),
        memory: Rc::new(ram.clone()),
    };
    host.plug(Box::new(VirtioPci::new(device)), attachment);
    host.port_write(0, 0xcf8, 4, SLOT | 0x20);
    let bar = (host.port_read(0, 0xcfc, 4).unwrap_or(0) & !0xf) as u64;
    let mut now = 1000;
    // A driver as it should be, to get far; then whatever the input says.
    let write = |host: &mut PciHost, now: u64, offset: u64, size: usize, value: u64| {
        host.mmio_write(now, bar + offset, size, value);
    };
    let start = input.byte();
    if start & 1 == 0 {
        for (offset, size, value) in [(0x14, 1, 0), (0x14, 1, 3), (8, 4, 1), (0xc, 4, 1), (0x14, 1, 0xb)] {
            write(&mut host, now, offset, size, value);
        }
        for queue in 0..2 {
            let at = RINGS + 0x3000 * queue;
            for (offset, size, value) in
                [(0x16, 2, queue), (0x18, 2, 8), (0x20, 8, at), (0x28, 8, at + 0x1000), (0x30, 8, at + 0x2000), (0x1c, 2, 1)]
            {
                write(&mut host, now, offset, size, value);
            }
        }
        write(&mut host, now, 0x14, 1, 0xf);
    }
    let shared = ram;
    while !input.done() {
        let what = input.byte();
        match what & 7 {
            // A descriptor.
            0 | 1 => {
                let at = RINGS + 0x3000 * (what >> 3 & 1) as u64 + 16 * (what >> 4 & 7) as u64;
                store(&shared, at, input.take(16));
            }
            // The available ring.
            2 => store(&shared, RINGS + 0x3000 * (what >> 3 & 1) as u64 + 0x1000, input.take(12)),
            // Data, and headers of requests.
            3 => store(&shared, 0x8000 + 0x100 * (what >> 3) as u64, input.take(32)),
            // A notification, and time.
            4 | 5 => {
                let queue = (what >> 3 & 3) as u64;
                write(&mut host, now, 0x3000 + 4 * queue, 2, queue);
                now = now.max(host.deadline().min(now + 1_000_000));
                host.tick(now);
            }
            // Any register.
            6 => {
                let offset = input.byte() as u64 | (input.byte() as u64 & 0x3f) << 8;
                let size = 1 << (what >> 3 & 3);
                let value = input.word();
                write(&mut host, now, offset & !(size as u64 - 1), size, value);
                host.mmio_read(now, bar + (offset & !(size as u64 - 1)), size);
            }
            // Configuration space.
            _ => {
                host.port_write(now, 0xcf8, 4, SLOT | (input.byte() as u32 & 0xfc));
                let value = input.word() as u32;
                host.port_write(now, 0xcfc, 4, value);
                host.port_read(now, 0xcfc, 4);
            }
        }
        host.poll(now);
    }
}

fn store(ram: &Ram, at: u64, bytes: &[u8]) {
    use undervisor_devices::wiring::Dma;
    let _ = ram.write(at, bytes);
}

/// A read of two sectors, and an indirect chain.
pub fn seeds() -> Vec<Vec<u8>> {
    let descriptor = |out: &mut Vec<u8>, index: u8, address: u64, length: u32, flags: u16, next: u16| {
        out.push(index << 4);
        out.extend(address.to_le_bytes());
        out.extend(length.to_le_bytes());
        out.extend(flags.to_le_bytes());
        out.extend(next.to_le_bytes());
    };
    let offer = |out: &mut Vec<u8>| {
        out.push(2);
        out.extend([0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        out.push(4);
    };
    let mut plain = vec![0, 3];
    plain.extend([0; 32]);
    descriptor(&mut plain, 0, 0x8000, 16, 1, 1);
    descriptor(&mut plain, 1, 0x9000, 1024, 3, 2);
    descriptor(&mut plain, 2, 0x8010, 1, 2, 0);
    offer(&mut plain);
    let mut indirect = vec![0];
    descriptor(&mut indirect, 0, RINGS + 16, 48, 4, 0);
    descriptor(&mut indirect, 1, 0x8000, 16, 1, 1);
    descriptor(&mut indirect, 2, 0x9000, 512, 3, 2);
    descriptor(&mut indirect, 3, 0x8010, 1, 2, 0);
    offer(&mut indirect);
    vec![plain, indirect, vec![1, 6, 0x14, 0, 0xf, 0, 0, 0, 0, 0, 0, 0, 4, 12]]
}

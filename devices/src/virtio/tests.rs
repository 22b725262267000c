//! Devices driven through their PCI function as a driver would.

use std::rc::Rc;

use super::*;
use crate::disk::{Disk, MemoryDisk};
use crate::pci::{Attachment, Bdf, PciHost};
use crate::wiring::{Dma, DmaExt, Signal, TestMemory, Wiring};

const DESCRIPTORS: u64 = 0x1000;
const AVAILABLE: u64 = 0x2000;
const USED: u64 = 0x3000;
const DATA: u64 = 0x8000;
const SLOT: u32 = 0x8000_0800;

struct Driver {
    host: PciHost,
    memory: Rc<TestMemory>,
    wiring: Wiring,
    bar: u64,
    now: u64,
    made_available: u16,
}

fn drive(device: impl VirtioDevice + 'static) -> Driver {
    let (memory, wiring) = (TestMemory::new(1 << 20), Wiring::new());
    let mut host = PciHost::default();
    let attachment = Attachment {
        address: Bdf { bus: 0, device: 1, function: 0 },
        intx: wiring.line(17),
        messages: wiring.messages(),
        memory: memory.clone(),
    };
    host.plug(Box::new(VirtioPci::new(device)), attachment);
    let mut d = Driver { host, memory, wiring, bar: 0, now: 1000, made_available: 0 };
    d.bar = (d.config(0x20) & !0xf) as u64;
    assert!(d.bar >= 0xc000_0000, "firmware's work: the range has an address");
    d
}

impl Driver {
    fn config(&mut self, offset: u32) -> u32 {
        self.host.port_write(0, 0xcf8, 4, SLOT | offset);
        self.host.port_read(0, 0xcfc, 4).unwrap()
    }
    fn set_config(&mut self, offset: u32, value: u32) {
        self.host.port_write(0, 0xcf8, 4, SLOT | offset);
        self.host.port_write(0, 0xcfc, 4, value);
    }
    /// Where a capability begins.
    fn capability(&mut self, id: u32) -> u32 {
        let mut at = self.config(0x34) & 0xff;
        while self.config(at) & 0xff != id {
            at = self.config(at) >> 8 & 0xff;
        }
        at
    }
    fn read(&mut self, offset: u64, size: usize) -> u64 {
        self.host.mmio_read(self.now, self.bar + offset, size).unwrap()
    }
    fn write(&mut self, offset: u64, size: usize, value: u64) {
        assert!(self.host.mmio_write(self.now, self.bar + offset, size, value));
    }
    fn offered(&mut self) -> u64 {
        self.write(0, 4, 0);
        let low = self.read(4, 4);
        self.write(0, 4, 1);
        low | self.read(4, 4) << 32
    }
    /// Negotiate `features` and set up queue `q`.
    fn start(&mut self, features: u64, q: u16, size: u16) {
        self.write(0x14, 1, 0);
        self.write(0x14, 1, 3);
        for half in 0..2 {
            self.write(8, 4, half);
            self.write(0xc, 4, features >> (32 * half) & 0xffff_ffff);
        }
        self.write(0x14, 1, 0xb);
        assert_eq!(self.read(0x14, 1), 0xb, "features refused");
        self.write(0x16, 2, q as u64);
        self.write(0x18, 2, size as u64);
        for (offset, value) in [(0x20, DESCRIPTORS), (0x28, AVAILABLE), (0x30, USED)] {
            self.write(offset, 8, value);
        }
        self.write(0x1c, 2, 1);
        self.write(0x14, 1, 0xf);
    }
    fn descriptor(&self, index: u64, address: u64, length: u32, flags: u16, next: u16) {
        let at = DESCRIPTORS + 16 * index;
        self.memory.write_u64(at, address).unwrap();
        self.memory.write_u32(at + 8, length).unwrap();
        self.memory.write_u32(at + 12, flags as u32 | (next as u32) << 16).unwrap();
    }
    fn offer(&mut self, head: u16, size: u16) {
        let at = AVAILABLE + 4 + 2 * (self.made_available % size) as u64;
        self.memory.write_u16(at, head).unwrap();
        self.made_available = self.made_available.wrapping_add(1);
        self.memory.write_u16(AVAILABLE + 2, self.made_available).unwrap();
    }
    /// Notify and let the device serve.
    fn kick(&mut self, q: u64) {
        self.write(0x3000 + 4 * q, 2, q);
        let due = self.host.deadline();
        if due != u64::MAX {
            assert_eq!(due, self.now + LATENCY);
            self.now = due;
            self.host.tick(due);
        }
    }
    fn used(&self) -> u16 {
        self.memory.read_u16(USED + 2).unwrap()
    }
    fn status(&mut self) -> u64 {
        self.read(0x14, 1)
    }
    /// A block request as three descriptors; its status byte.
    fn block(&mut self, kind: u32, sector: u64, data: u32, device_writes: bool) -> u8 {
        self.memory.write_u32(DATA, kind).unwrap();
        self.memory.write_u64(DATA + 8, sector).unwrap();
        self.memory.write(DATA + 16, &[0xee]).unwrap();
        self.descriptor(0, DATA, 16, 1, 1);
        self.descriptor(1, DATA + 0x1000, data, 1 | (device_writes as u16) << 1, 2);
        self.descriptor(2, DATA + 16, 1, 2, 0);
        let before = self.used();
        self.offer(0, 8);
        self.kick(0);
        assert_eq!(self.used(), before.wrapping_add(1));
        let mut status = [0];
        self.memory.read(DATA + 16, &mut status).unwrap();
        status[0]
    }
}

const V1: u64 = feature::VERSION_1;

fn disk() -> Block {
    Block::new(Box::new(MemoryDisk((0..64 * 512u32).map(|i| (i / 512) as u8).collect())), "serial-1")
}

#[test]
fn block_reads_writes_and_says_who_it_is() {
    let mut d = drive(disk());
    assert_eq!(d.config(0), 0x1042_1af4);
    assert_eq!(d.read(0x2000, 8), 64, "capacity in sectors");
    d.start(V1, 0, 8);
    assert_eq!(d.block(0, 5, 1024, true), 0);
    let mut data = [0; 1024];
    d.memory.read(DATA + 0x1000, &mut data).unwrap();
    assert!(data[..512].iter().all(|&b| b == 5) && data[512..].iter().all(|&b| b == 6));
    assert_eq!(d.memory.read_u32(USED + 8), Ok(1025));
    d.memory.write(DATA + 0x1000, &[0xaa; 512]).unwrap();
    assert_eq!(d.block(1, 5, 512, false), 0);
    d.memory.write(DATA + 0x1000, &[0; 512]).unwrap();
    assert_eq!(d.block(0, 5, 512, true), 0);
    d.memory.read(DATA + 0x1000, &mut data[..512]).unwrap();
    assert!(data[..512].iter().all(|&b| b == 0xaa));
    assert_eq!(d.block(8, 0, 20, true), 0);
    d.memory.read(DATA + 0x1000, &mut data[..8]).unwrap();
    assert_eq!(&data[..8], b"serial-1");
    assert_eq!(d.block(4, 0, 0, false), 0, "flush");
    assert_eq!(d.block(99, 0, 0, false), 2, "unknown type");
}

#[test]
fn block_stays_within_the_disk() {
    let mut d = drive(disk());
    d.start(V1, 0, 8);
    assert_eq!(d.block(0, 63, 512, true), 0);
    assert_eq!(d.block(0, 63, 1024, true), 1);
    assert_eq!(d.block(0, u64::MAX, 512, true), 1);
    assert_eq!(d.block(0, 0, 100, true), 1, "not a whole sector");
    assert_eq!(d.block(1, 64, 512, false), 1);
}

#[test]
fn discard_and_write_zeroes() {
    let mut d = drive(disk());
    d.start(V1, 0, 8);
    let mut range = [0u8; 16];
    (range[0], range[8]) = (3, 2);
    d.memory.write(DATA + 0x1000, &range).unwrap();
    assert_eq!(d.block(13, 0, 16, false), 0);
    assert_eq!(d.block(0, 4, 512, true), 0);
    assert_eq!(d.memory.read_u32(DATA + 0x1000), Ok(0));
    range[12] = 1;
    d.memory.write(DATA + 0x1000, &range).unwrap();
    assert_eq!(d.block(11, 0, 16, false), 2, "discard with a flag");
    range[0] = 63;
    d.memory.write(DATA + 0x1000, &range).unwrap();
    assert_eq!(d.block(13, 0, 16, false), 1, "beyond the end");
}

/// Fails from some moment on, as a disk on an unplugged drive does.
struct Gone;

impl Disk for Gone {
    fn size(&self) -> u64 {
        1 << 20
    }
    fn readonly(&self) -> bool {
        true
    }
    fn read(&mut self, _: u64, _: &mut [u8]) -> std::io::Result<()> {
        Err(std::io::Error::other("no such device"))
    }
    fn write(&mut self, _: u64, _: &[u8]) -> std::io::Result<()> {
        panic!("a read-only disk was written")
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_disk_that_goes_away_is_an_io_error() {
    let mut d = drive(Block::new(Box::new(Gone), ""));
    assert_ne!(d.offered() & 1 << 5, 0, "read-only is announced");
    d.start(V1, 0, 8);
    assert_eq!(d.block(0, 0, 512, true), 1);
    assert_eq!(d.block(1, 0, 512, false), 1);
    assert_eq!(d.status() & 0x40, 0, "the device goes on");
}

#[test]
fn interrupts_by_pin_and_by_message() {
    let mut d = drive(disk());
    d.start(V1, 0, 8);
    d.block(4, 0, 0, false);
    assert_eq!(d.wiring.take(), [Signal::Pin { pin: 17, level: true }]);
    assert_eq!(d.read(0x1000, 1), 1, "ISR");
    assert_eq!(d.wiring.take(), [Signal::Pin { pin: 17, level: false }]);
    // Hidden by INTx disable; the status shows it all the same.
    d.set_config(4, 0x406);
    d.block(4, 0, 0, false);
    assert_eq!((d.wiring.take(), d.config(4) >> 16 & 8), (vec![], 8));
    d.set_config(4, 6);
    assert_eq!(d.wiring.take(), [Signal::Pin { pin: 17, level: true }]);
    // MSI: a message for each interrupt and no pin, and the ISR status as before.
    let msi = d.capability(5);
    d.set_config(msi + 4, 0xfee0_2000);
    d.set_config(msi + 12, 0x77);
    d.set_config(msi, 0x0001_0000);
    assert_eq!(d.wiring.take(), [Signal::Pin { pin: 17, level: false }]);
    let message = Signal::Message { address: 0xfee0_2000, data: 0x77 };
    for _ in 0..2 {
        d.block(4, 0, 0, false);
        assert_eq!(d.wiring.take(), [message]);
    }
    assert_eq!((d.read(0x1000, 1), d.wiring.take()), (1, vec![]));
    d.set_config(msi, 0);
    // The MSI-X table is in the first range; enable it and give queue 0 vector 1.
    let msix = (d.config(0x14) & !0xf) as u64;
    let host = &mut d.host;
    host.mmio_write(0, msix + 16, 8, 0xfee0_0000);
    host.mmio_write(0, msix + 24, 8, 0x55);
    let capability = d.capability(0x11);
    d.set_config(capability, 0x8000_0000);
    d.write(0x16, 2, 0);
    d.write(0x1a, 2, 1);
    assert_eq!(d.read(0x1a, 2), 1);
    d.block(4, 0, 0, false);
    assert_eq!(d.wiring.take(), [Signal::Message { address: 0xfee0_0000, data: 0x55 }]);
    d.write(0x1a, 2, 7);
    assert_eq!(d.read(0x1a, 2), 0xffff, "no such vector");
}

#[test]
fn event_index_suppresses_interrupts() {
    let mut d = drive(disk());
    d.start(V1 | feature::EVENT_IDX, 0, 8);
    d.block(4, 0, 0, false);
    d.read(0x1000, 1);
    d.wiring.take();
    // The driver wants to hear when the used index passes 3.
    d.memory.write_u16(AVAILABLE + 4 + 16, 2).unwrap();
    d.block(4, 0, 0, false);
    assert!(d.wiring.take().is_empty());
    d.block(4, 0, 0, false);
    assert_eq!(d.wiring.take(), [Signal::Pin { pin: 17, level: true }]);
    assert_eq!(d.memory.read_u16(USED + 4 + 64), Ok(3), "notify me from the fourth request on");
}

#[test]
fn indirect_descriptors() {
    let mut d = drive(Rng::new(7));
    d.start(V1 | feature::INDIRECT_DESC, 0, 8);
    d.descriptor(0, DATA, 32, 4, 0);
    for (i, next) in [(0u64, 1u32), (1, 0)] {
        d.memory.write_u64(DATA + 16 * i, DATA + 0x100 + 8 * i).unwrap();
        d.memory.write_u32(DATA + 16 * i + 8, 8).unwrap();
        d.memory.write_u32(DATA + 16 * i + 12, 2 | next | next << 16).unwrap();
    }
    d.offer(0, 8);
    d.kick(0);
    let first = (d.memory.read_u64(DATA + 0x100).unwrap(), d.memory.read_u64(DATA + 0x108).unwrap());
    assert!(first.0 != 0 && first.1 != 0 && first.0 != first.1);
    // The same seed gives the same bytes.
    let mut again = drive(Rng::new(7));
    again.start(V1, 0, 8);
    again.descriptor(0, DATA, 16, 2, 0);
    again.offer(0, 8);
    again.kick(0);
    assert_eq!(again.memory.read_u64(DATA), Ok(first.0));
}

/// Each breaks one rule of the rings; the device asks for a reset, and works after it.
#[test]
fn hostile_rings_end_in_needs_reset() {
    type Breaker = fn(&mut Driver);
    let breakers: [(&str, Breaker); 9] = [
        ("head beyond the table", |d| d.offer(8, 8)),
        ("loop", |d| {
            d.descriptor(0, DATA, 16, 1, 0);
            d.offer(0, 8);
        }),
        ("next beyond the table", |d| {
            d.descriptor(0, DATA, 16, 1, 0xffff);
            d.offer(0, 8);
        }),
        ("reading after writing", |d| {
            d.descriptor(0, DATA, 16, 3, 1);
            d.descriptor(1, DATA, 16, 0, 0);
            d.offer(0, 8);
        }),
        ("indirect without the feature", |d| {
            d.descriptor(0, DATA, 32, 4, 0);
            d.offer(0, 8);
        }),
        ("data outside memory", |d| {
            d.descriptor(0, u64::MAX - 4, 16, 1, 1);
            d.descriptor(1, DATA, 1, 2, 0);
            d.offer(0, 8);
        }),
        ("more requests than the queue has", |d| d.memory.write_u16(AVAILABLE + 2, 9).unwrap()),
        ("no status byte", |d| {
            d.descriptor(0, DATA, 16, 0, 0);
            d.offer(0, 8);
        }),
        ("no header", |d| {
            d.descriptor(0, DATA, 16, 2, 0);
            d.offer(0, 8);
        }),
    ];
    for (what, breaks) in breakers {
        let mut d = drive(disk());
        d.start(V1, 0, 8);
        breaks(&mut d);
        d.kick(0);
        assert_eq!(d.status() & 0x40, 0x40, "{what}");
        let before = d.used();
        d.kick(0);
        assert_eq!(d.used(), before, "{what}: the ring is left alone");
        d.memory.0.borrow_mut().fill(0);
        d.made_available = 0;
        d.start(V1, 0, 8);
        assert_eq!(d.block(0, 1, 512, true), 0, "{what}: works after a reset");
    }
}

#[test]
fn a_ring_outside_memory_is_no_panic() {
    let mut d = drive(disk());
    d.start(V1, 0, 8);
    d.write(0x14, 1, 0);
    d.write(0x14, 1, 3);
    d.write(8, 4, 1);
    d.write(0xc, 4, 1);
    d.write(0x14, 1, 0xb);
    for offset in [0x20, 0x28, 0x30] {
        d.write(offset, 8, 1 << 40);
    }
    d.write(0x1c, 2, 1);
    d.write(0x14, 1, 0xf);
    d.kick(0);
    assert_eq!(d.status() & 0x40, 0x40);
}

#[test]
fn features_that_were_not_offered_are_refused() {
    let mut d = drive(Rng::new(1));
    d.write(0x14, 1, 3);
    d.write(8, 4, 1);
    d.write(0xc, 4, 1 | 1 << 20);
    d.write(0x14, 1, 0xb);
    assert_eq!(d.status(), 3);
}

#[test]
fn console_both_ways() {
    let backend = crate::chardev::BufferBackend::new();
    let mut d = drive(Console::new(Box::new(backend.clone())));
    d.start(V1, 1, 8);
    d.memory.write(DATA, b"hello").unwrap();
    d.descriptor(0, DATA, 5, 0, 0);
    d.offer(0, 8);
    d.kick(1);
    assert_eq!(backend.output(), b"hello");
    d.memory.0.borrow_mut().fill(0);
    d.made_available = 0;
    d.start(V1, 0, 8);
    d.descriptor(0, DATA, 64, 2, 0);
    d.offer(0, 8);
    d.kick(0);
    assert_eq!(d.used(), 0, "nothing typed yet");
    backend.feed(b"ls\n");
    d.host.poll(d.now);
    assert_eq!((d.used(), d.memory.read_u32(USED + 8)), (1, Ok(3)));
    assert_eq!(d.memory.read_u32(DATA), Ok(0x000a_736c));
}

#[test]
fn the_configuration_window_reaches_the_structures() {
    let mut d = drive(disk());
    let mut at = d.config(0x34) & 0xff;
    loop {
        let head = d.config(at);
        if head & 0xff == 9 && head >> 24 == 5 {
            break;
        }
        at = head >> 8 & 0xff;
        assert_ne!(at, 0);
    }
    for (offset, value) in [(4, 4), (8, 0x2000), (12, 4)] {
        d.host.port_write(0, 0xcf8, 4, SLOT | (at + offset));
        d.host.port_write(0, 0xcfc, 4, value);
    }
    assert_eq!(d.config(at + 16), 64);
}

//! The host bridge's work: configuration mechanism 1, ECAM, and the way to each function's ranges.

use undervisor_mmu::LowRouting;

use super::{Attachment, BarRange, Bdf, ECAM_BASE, PciDevice, chipset, config, is_ecam};

const ADDRESS_PORT: u16 = 0xcf8;
const DATA_PORTS: std::ops::RangeInclusive<u16> = 0xcfc..=0xcff;
/// Where base addresses are given out, as firmware would.
const WINDOW: std::ops::Range<u64> = 0xc000_0000..0xfe00_0000;
const IO_WINDOW: std::ops::Range<u64> = 0xc000..0x1_0000;

/// Bus 0 and its functions.
///
/// The machine calls it for every port and address that no fixed device claims; `None` means nothing is there.
pub struct PciHost {
    functions: Vec<(Bdf, Box<dyn PciDevice>)>,
    /// CONFIG_ADDRESS.
    address: u32,
    /// What decodes, with the function's index.
    ranges: Vec<(BarRange, usize)>,
    next_memory: u64,
    next_io: u64,
}

impl Default for PciHost {
    fn default() -> PciHost {
        let at = |device, function| Bdf { bus: 0, device, function };
        PciHost {
            functions: vec![
                (at(0, 0), Box::new(chipset::host_bridge()) as Box<dyn PciDevice>),
                (at(0x1f, 0), Box::new(chipset::isa_bridge())),
            ],
            address: 0,
            ranges: Vec::new(),
            next_memory: WINDOW.start,
            next_io: IO_WINDOW.start,
        }
    }
}

impl PciHost {
    /// Plug a function in and give it addresses.
    pub fn plug(&mut self, mut device: Box<dyn PciDevice>, attachment: Attachment) {
        let address = attachment.address;
        device.attach(attachment);
        self.assign(&mut *device);
        self.functions.push((address, device));
        self.functions.sort_by_key(|f| f.0);
        self.refresh();
    }

    /// What firmware does: size each base address register, give it a range, switch decoding on.
    fn assign(&mut self, device: &mut dyn PciDevice) {
        let mut command = 0;
        let mut bar = 0;
        while bar < 6 {
            let at = 0x10 + 4 * bar;
            bar += 1;
            let original = device.config_read(at, 4);
            device.config_write(0, at, 4, u32::MAX);
            let mask = device.config_read(at, 4);
            if mask == 0 || mask == original {
                continue;
            }
            let io = original & 1 != 0;
            let wide = !io && original & 6 == 4;
            let low = if io { mask & !3 | 0xffff_0000 } else { mask & !0xf };
            let mut size = !(low as u64 | 0xffff_ffff_0000_0000) + 1;
            if wide {
                bar += 1;
                device.config_write(0, at + 4, 4, u32::MAX);
                let high = device.config_read(at + 4, 4);
                size = (!(low as u64 | (high as u64) << 32)).wrapping_add(1);
            }
            let (next, end) = if io { (&mut self.next_io, IO_WINDOW.end) } else { (&mut self.next_memory, WINDOW.end) };
            let base = next.checked_next_multiple_of(size).unwrap_or(u64::MAX);
            let fits = base.checked_add(size).is_some_and(|e| e <= end);
            let base = if fits { base } else { 0 };
            device.config_write(0, at, 4, base as u32);
            if wide {
                device.config_write(0, at + 4, 4, (base >> 32) as u32);
            }
            if fits {
                *next = base + size;
                command |= if io { config::COMMAND_IO } else { config::COMMAND_MEMORY };
            }
        }
        device.config_write(0, 4, 2, command as u32);
    }

    fn refresh(&mut self) {
        self.ranges.clear();
        for (i, (_, f)) in self.functions.iter().enumerate() {
            self.ranges.extend(f.ranges().into_iter().map(|r| (r, i)));
        }
    }

    /// The 8259 inputs that PIRQA–H drive, where the ISA bridge routes them to one (ICH9 datasheet, PIRQn_ROUT).
    pub fn pirq_routes(&mut self) -> [Option<u8>; 8] {
        let Some(bridge) = self.find(0, 0x1f, 0) else { return [None; 8] };
        let routes = [0x60, 0x68].map(|at| bridge.config_read(at, 4).to_le_bytes());
        std::array::from_fn(|i| {
            let route = routes[i / 4][i % 4];
            (route & chipset::PIRQ_OFF == 0 && matches!(route & 0xf, 3..=7 | 9..=12 | 14 | 15)).then_some(route & 0xf)
        })
    }

    /// Where the host bridge sends accesses between 640 KiB and 1 MiB.
    pub fn low_routing(&mut self) -> LowRouting {
        let Some(bridge) = self.find(0, 0, 0) else { return LowRouting::RAM };
        let pam = std::array::from_fn(|i| bridge.config_read((chipset::PAM + i) as u16, 1) as u8);
        chipset::low_routing(pam, bridge.config_read(chipset::SMRAM as u16, 1) as u8)
    }

    /// What firmware does when it is done: everything from 768 KiB to 1 MiB is RAM.
    pub fn shadow(&mut self) {
        if let Some(bridge) = self.find(0, 0, 0) {
            for (at, value) in (chipset::PAM as u16..).zip(chipset::SHADOWED) {
                bridge.config_write(0, at, 1, value as u32);
            }
        }
    }

    fn find(&mut self, bus: u8, device: u8, function: u8) -> Option<&mut Box<dyn PciDevice>> {
        let address = Bdf { bus, device, function };
        self.functions.iter_mut().find(|f| f.0 == address).map(|f| &mut f.1)
    }

    fn config_read(&mut self, at: u32, size: usize) -> u32 {
        let ones = u32::MAX >> (32 - 8 * size.clamp(1, 4));
        let Some(f) = self.find((at >> 20) as u8, (at >> 15 & 31) as u8, (at >> 12 & 7) as u8) else { return ones };
        let offset = (at & 0xfff) as u16;
        if (offset as usize).is_multiple_of(size) {
            return f.config_read(offset, size) & ones;
        }
        (0..size as u16).fold(0, |v, i| v | (f.config_read(offset + i, 1) & 0xff) << (8 * i))
    }

    fn config_write(&mut self, now: u64, at: u32, size: usize, value: u32) {
        let Some(f) = self.find((at >> 20) as u8, (at >> 15 & 31) as u8, (at >> 12 & 7) as u8) else { return };
        let offset = (at & 0xfff) as u16;
        if (offset as usize).is_multiple_of(size) {
            f.config_write(now, offset, size, value);
        } else {
            for i in 0..size as u16 {
                f.config_write(now, offset + i, 1, value >> (8 * i) & 0xff);
            }
        }
        self.refresh();
    }

    /// ECAM-shaped address of a data-port access, if CONFIG_ADDRESS is enabled and names bus 0–255.
    fn mechanism_1(&self, port: u16) -> Option<u32> {
        let a = self.address;
        (a >> 31 != 0).then_some((a >> 8 & 0xffff) << 12 | a & 0xfc | (port & 3) as u32)
    }

    fn decode(&self, address: u64, size: usize, io: bool) -> Option<(usize, u8, u64)> {
        self.ranges
            .iter()
            .find(|(r, _)| r.io == io && address >= r.base && address - r.base <= r.size - (size as u64).min(r.size))
            .map(|(r, i)| (*i, r.bar, address - r.base))
    }

    pub fn port_read(&mut self, now: u64, port: u16, size: usize) -> Option<u32> {
        if port == ADDRESS_PORT && size == 4 {
            return Some(self.address);
        }
        if DATA_PORTS.contains(&port) {
            let ones = u32::MAX >> (32 - 8 * size.clamp(1, 4));
            return Some(self.mechanism_1(port).map_or(ones, |at| self.config_read(at, size)));
        }
        let (i, bar, offset) = self.decode(port as u64, size, true)?;
        Some(self.functions.get_mut(i)?.1.bar_read(now, bar, offset, size) as u32)
    }

    /// Whether anyone took it.
    pub fn port_write(&mut self, now: u64, port: u16, size: usize, value: u32) -> bool {
        if port == ADDRESS_PORT && size == 4 {
            self.address = value & 0x80ff_fffc;
            return true;
        }
        if DATA_PORTS.contains(&port) {
            if let Some(at) = self.mechanism_1(port) {
                self.config_write(now, at, size, value);
            }
            return true;
        }
        let Some((i, bar, offset)) = self.decode(port as u64, size, true) else { return false };
        if let Some((_, f)) = self.functions.get_mut(i) {
            f.bar_write(now, bar, offset, size, value as u64);
        }
        true
    }

    pub fn mmio_read(&mut self, now: u64, address: u64, size: usize) -> Option<u64> {
        if is_ecam(address) {
            let at = (address - ECAM_BASE) as u32;
            // Eight bytes are two accesses.
            let low = self.config_read(at, size.min(4)) as u64;
            let high = if size > 4 { self.config_read(at + 4, 4) as u64 } else { 0 };
            return Some(low | high << 32);
        }
        let (i, bar, offset) = self.decode(address, size, false)?;
        Some(self.functions.get_mut(i)?.1.bar_read(now, bar, offset, size))
    }

    /// Whether anyone took it.
    pub fn mmio_write(&mut self, now: u64, address: u64, size: usize, value: u64) -> bool {
        if is_ecam(address) {
            let at = (address - ECAM_BASE) as u32;
            self.config_write(now, at, size.min(4), value as u32);
            if size > 4 {
                self.config_write(now, at + 4, 4, (value >> 32) as u32);
            }
            return true;
        }
        let Some((i, bar, offset)) = self.decode(address, size, false) else { return false };
        if let Some((_, f)) = self.functions.get_mut(i) {
            f.bar_write(now, bar, offset, size, value);
        }
        true
    }

    /// Earliest deadline of any function.
    pub fn deadline(&self) -> u64 {
        self.functions.iter().map(|f| f.1.deadline()).min().unwrap_or(u64::MAX)
    }

    /// Tick every function whose deadline has come.
    pub fn tick(&mut self, now: u64) {
        for (_, f) in &mut self.functions {
            if f.deadline() <= now {
                f.tick(now);
            }
        }
    }

    /// Let every function take in what came from outside.
    pub fn poll(&mut self, now: u64) {
        self.functions.iter_mut().for_each(|f| f.1.poll(now));
    }

    /// Platform reset; addresses are given out anew.
    pub fn reset(&mut self) {
        self.address = 0;
        (self.next_memory, self.next_io) = (WINDOW.start, IO_WINDOW.start);
        let mut functions = std::mem::take(&mut self.functions);
        for (_, f) in &mut functions {
            f.reset();
            if !f.ranges().is_empty() || f.config_read(0x0a, 2) & 0xff00 != 0x0600 {
                self.assign(&mut **f);
            }
        }
        self.functions = functions;
        self.refresh();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(host: &mut PciHost, address: u32, port: u16, size: usize) -> u32 {
        assert!(host.port_write(0, 0xcf8, 4, address));
        host.port_read(0, port, size).unwrap()
    }

    #[test]
    fn both_mechanisms_find_the_chipset() {
        let mut host = PciHost::default();
        assert_eq!(read(&mut host, 0x8000_0000, 0xcfc, 4), 0x29c0_8086);
        assert_eq!(read(&mut host, 0x8000_f800, 0xcfe, 2), 0x2918);
        assert_eq!(read(&mut host, 0x8000_0800, 0xcfc, 2), 0xffff);
        assert_eq!(read(&mut host, 0x0000_0000, 0xcfc, 1), 0xff);
        assert_eq!(host.mmio_read(0, ECAM_BASE + 0xf8000, 4), Some(0x2918_8086));
        assert_eq!(host.mmio_read(0, ECAM_BASE + 0x100000, 4), Some(0xffff_ffff));
        assert_eq!(host.mmio_read(0, ECAM_BASE + 0x60, 8), Some(ECAM_BASE | 1));
        assert_eq!(host.mmio_read(0, 0xd000_0000, 4), None);
        assert_eq!(host.port_read(0, 0xc000, 4), None);
    }
}

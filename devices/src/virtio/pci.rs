//! Virtio over PCI bus, modern transport (VIRTIO 1.2, Virtio Over PCI Bus). Besides MSI-X and INTx, which virtio has rules for, there is
//! plain MSI with one vector: a message wherever INTx would be asserted, and the ISR status says why.

use super::{LATENCY, Queue, RingError, VirtioDevice, feature};
use crate::pci::{Attachment, Bar, BarRange, ConfigSpace, Msi, Msix, PciDevice};
use crate::{NEVER, Time};

const VENDOR: u16 = 0x1af4;
const CAPABILITY: u8 = 9;

/// Memory range of the MSI-X table.
const MSIX_BAR: u8 = 1;
/// Memory range of the virtio structures.
const BAR: u8 = 4;
const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const STRUCTURE: u64 = 0x1000;
const NOTIFY_MULTIPLIER: u32 = 4;

const CFG_COMMON: u8 = 1;
const CFG_NOTIFY: u8 = 2;
const CFG_ISR: u8 = 3;
const CFG_DEVICE: u8 = 4;
const CFG_PCI: u8 = 5;

const DRIVER_OK: u8 = 4;
const FEATURES_OK: u8 = 8;
const NEEDS_RESET: u8 = 0x40;

const ISR_QUEUE: u8 = 1;
const ISR_CONFIG: u8 = 2;
const NO_VECTOR: u16 = 0xffff;

/// A virtio device as a PCI function.
pub struct VirtioPci<D> {
    device: D,
    config: ConfigSpace,
    msix: Msix,
    msi: Msi,
    /// Where the configuration access capability is.
    window: usize,
    attachment: Option<Attachment>,
    queues: Vec<Queue>,
    /// Queues that were notified and not yet served.
    notified: Vec<bool>,
    deadline: Time,
    status: u8,
    isr: u8,
    device_feature_select: u32,
    driver_feature_select: u32,
    driver_features: u64,
    config_vector: u16,
    queue_select: u16,
    generation: u8,
    shown_config: Vec<u8>,
}

impl<D: VirtioDevice> VirtioPci<D> {
    pub fn new(device: D) -> VirtioPci<D> {
        let mut config = ConfigSpace::new(VENDOR, 0x1040 + device.device_id(), 1, device.class());
        config.subsystem(VENDOR, 0x1100);
        config.interrupt_pin(1);
        config.bar(MSIX_BAR as usize, Bar::Memory32 { size: crate::pci::MSIX_RANGE });
        config.bar(BAR as usize, Bar::Memory64 { size: 0x4000, prefetchable: true });
        let queues: Vec<Queue> = device.queues().iter().map(|&size| Queue::new(size)).collect();
        let msix = Msix::new(&mut config, MSIX_BAR, queues.len() as u16 + 1);
        let msi = Msi::new(&mut config, 0);
        let structure = |kind: u8, offset: u64, length: u64, extra: &[u8]| {
            let mut body = vec![16 + extra.len() as u8, kind, BAR, 0, 0, 0];
            body.extend((offset as u32).to_le_bytes());
            body.extend((length as u32).to_le_bytes());
            body.extend(extra);
            body
        };
        config.capability(CAPABILITY, &structure(CFG_COMMON, COMMON, STRUCTURE, &[]));
        config.capability(CAPABILITY, &structure(CFG_ISR, ISR, STRUCTURE, &[]));
        config.capability(CAPABILITY, &structure(CFG_DEVICE, DEVICE, STRUCTURE, &[]));
        config.capability(CAPABILITY, &structure(CFG_NOTIFY, NOTIFY, STRUCTURE, &NOTIFY_MULTIPLIER.to_le_bytes()));
        let window = config.capability(CAPABILITY, &structure(CFG_PCI, 0, 0, &[0; 4]));
        config.allow(window + 4, &[0xff]);
        config.allow(window + 8, &[0xff; 8]);
        config.finish();
        let notified = vec![false; queues.len()];
        VirtioPci {
            device,
            config,
            msix,
            msi,
            window,
            attachment: None,
            queues,
            notified,
            deadline: NEVER,
            status: 0,
            isr: 0,
            device_feature_select: 0,
            driver_feature_select: 0,
            driver_features: 0,
            config_vector: NO_VECTOR,
            queue_select: 0,
            generation: 0,
            shown_config: Vec::new(),
        }
    }

    /// The device behind the transport.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.device
    }

    fn features(&self) -> u64 {
        self.device.features() | feature::VERSION_1 | feature::INDIRECT_DESC | feature::EVENT_IDX
    }

    fn running(&self) -> bool {
        self.status & (DRIVER_OK | NEEDS_RESET) == DRIVER_OK
    }

    /// Writing 0 to the status.
    fn reset_device(&mut self) {
        self.device.reset();
        for q in &mut self.queues {
            *q = Queue::new(q.max_size);
        }
        self.notified.fill(false);
        self.deadline = NEVER;
        (self.status, self.isr, self.driver_features) = (0, 0, 0);
        (self.device_feature_select, self.driver_feature_select, self.queue_select) = (0, 0, 0);
        self.config_vector = NO_VECTOR;
        self.drive_intx();
    }

    fn drive_intx(&mut self) {
        let messages = self.msix.enabled(&self.config) || self.msi.enabled(&self.config);
        let level = self.isr != 0 && !messages;
        self.config.set_interrupt_status(level);
        let open = self.config.command() & crate::pci::COMMAND_INTX_DISABLE == 0;
        if let Some(a) = &mut self.attachment {
            a.intx.set(level && open);
        }
    }

    fn interrupt(&mut self, vector: u16, isr: u8) {
        if self.msix.enabled(&self.config) {
            if let Some(a) = &self.attachment
                && vector != NO_VECTOR
            {
                self.msix.raise(&self.config, vector, &a.messages);
            }
        } else {
            self.isr |= isr;
            if let Some(a) = &self.attachment
                && self.msi.enabled(&self.config)
            {
                self.msi.raise(&mut self.config, 0, &a.messages);
            }
            self.drive_intx();
        }
    }

    fn broken(&mut self, queue: usize, error: RingError) {
        log::warn!("{}: queue {queue}: {error}; the device needs a reset", self.device.name());
        self.status |= NEEDS_RESET;
        self.deadline = NEVER;
        self.interrupt(self.config_vector, ISR_CONFIG);
    }

    fn serve(&mut self, index: usize) {
        let Some(memory) = self.attachment.as_ref().map(|a| a.memory.clone()) else { return };
        let Some(queue) = self.queues.get_mut(index) else { return };
        if !queue.enabled {
            return;
        }
        let vector = queue.vector;
        let result = self.device.serve(index, queue, &*memory).and_then(|pushed| {
            // Asked even if nothing was pushed now: an earlier suppressed one may be due.
            Ok(pushed && queue.wants_interrupt(&*memory)?)
        });
        match result {
            Ok(true) => self.interrupt(vector, ISR_QUEUE),
            Ok(false) => {}
            Err(error) => self.broken(index, error),
        }
    }

    fn notify(&mut self, now: Time, queue: u64) {
        if !self.running() {
            return;
        }
        if let Some(flag) = usize::try_from(queue).ok().and_then(|q| self.notified.get_mut(q)) {
            *flag = true;
            self.deadline = self.deadline.min(now.saturating_add(LATENCY));
        }
    }

    fn selected(&self) -> Option<&Queue> {
        self.queues.get(self.queue_select as usize)
    }

    /// A register of the common configuration structure: (value, width).
    fn common_read(&mut self, offset: u64) -> (u64, u64) {
        let q = self.selected();
        let of = |f: fn(&Queue) -> u64| q.map_or(0, f);
        match offset {
            0x00 => (self.device_feature_select as u64, 4),
            0x04 => (select(self.features(), self.device_feature_select), 4),
            0x08 => (self.driver_feature_select as u64, 4),
            0x0c => (select(self.driver_features, self.driver_feature_select), 4),
            0x10 => (self.config_vector as u64, 2),
            0x12 => (self.queues.len() as u64, 2),
            0x14 => (self.status as u64, 1),
            0x15 => {
                let config = self.device.config();
                if config != self.shown_config {
                    self.shown_config = config;
                    self.generation = self.generation.wrapping_add(1);
                }
                (self.generation as u64, 1)
            }
            0x16 => (self.queue_select as u64, 2),
            0x18 => (of(|q| q.size as u64), 2),
            0x1a => (q.map_or(NO_VECTOR as u64, |q| q.vector as u64), 2),
            0x1c => (of(|q| q.enabled as u64), 2),
            // queue_notify_off: the queue's number.
            0x1e => (self.queue_select as u64, 2),
            0x20 => (of(|q| q.descriptors & 0xffff_ffff), 4),
            0x24 => (of(|q| q.descriptors >> 32), 4),
            0x28 => (of(|q| q.available & 0xffff_ffff), 4),
            0x2c => (of(|q| q.available >> 32), 4),
            0x30 => (of(|q| q.used & 0xffff_ffff), 4),
            0x34 => (of(|q| q.used >> 32), 4),
            _ => (0, 1),
        }
    }

    fn common_write(&mut self, offset: u64, value: u64) {
        let vectors = self.msix.vectors();
        let vector = if (value as u16) < vectors { value as u16 } else { NO_VECTOR };
        match offset {
            0x00 => self.device_feature_select = value as u32,
            0x08 => self.driver_feature_select = value as u32,
            0x0c if self.status & FEATURES_OK == 0 => match self.driver_feature_select {
                0 => self.driver_features = self.driver_features & !0xffff_ffff | value & 0xffff_ffff,
                1 => self.driver_features = self.driver_features & 0xffff_ffff | value << 32,
                _ => {}
            },
            0x10 => self.config_vector = vector,
            0x14 => self.set_status(value as u8),
            0x16 => self.queue_select = value as u16,
            _ => {
                let (features, running) = (self.driver_features, self.status & DRIVER_OK != 0);
                let Some(q) = self.queues.get_mut(self.queue_select as usize) else { return };
                let (low, high) = (value & 0xffff_ffff, value << 32);
                match offset {
                    0x1a => q.vector = vector,
                    0x1c if value & 1 != 0 => {
                        q.event_idx = features & feature::EVENT_IDX != 0;
                        q.indirect = features & feature::INDIRECT_DESC != 0;
                        q.enabled = true;
                    }
                    _ if q.enabled && running => {}
                    0x18 if (value as u16).is_power_of_two() && value as u16 <= q.max_size => q.size = value as u16,
                    0x20 => q.descriptors = q.descriptors & !0xffff_ffff | low,
                    0x24 => q.descriptors = q.descriptors & 0xffff_ffff | high,
                    0x28 => q.available = q.available & !0xffff_ffff | low,
                    0x2c => q.available = q.available & 0xffff_ffff | high,
                    0x30 => q.used = q.used & !0xffff_ffff | low,
                    0x34 => q.used = q.used & 0xffff_ffff | high,
                    _ => {}
                }
            }
        }
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset_device();
            return;
        }
        let mut value = value & !NEEDS_RESET | self.status & NEEDS_RESET;
        if value & FEATURES_OK != 0 && self.status & FEATURES_OK == 0 {
            // Features that were not offered, or a driver of before 1.0, are refused.
            let accepted = self.driver_features & !self.features() == 0 && self.driver_features & feature::VERSION_1 != 0;
            if !accepted {
                value &= !FEATURES_OK;
            }
        }
        let started = value & DRIVER_OK != 0 && self.status & DRIVER_OK == 0;
        self.status = value;
        if started {
            self.device.activate(self.driver_features);
        }
    }

    fn structure_read(&mut self, offset: u64, size: usize) -> u64 {
        let within = offset % STRUCTURE;
        match offset & !(STRUCTURE - 1) {
            COMMON => {
                // Fields may be read in parts, and 64-bit ones whole.
                let mut value = 0;
                let mut done = 0;
                while done < size as u64 {
                    let at = within + done;
                    let start = field_start(at);
                    let (field, width) = self.common_read(start);
                    value |= (field >> (8 * (at - start))) << (8 * done);
                    done += (start + width).saturating_sub(at).max(1);
                }
                value
            }
            ISR => {
                let isr = std::mem::take(&mut self.isr);
                self.drive_intx();
                isr as u64
            }
            DEVICE => {
                let config = self.device.config();
                let byte = |i: usize| config.get(within as usize + i).copied().unwrap_or(0) as u64;
                (0..size.min(8)).fold(0, |v, i| v | byte(i) << (8 * i))
            }
            _ => 0,
        }
    }

    fn structure_write(&mut self, now: Time, offset: u64, size: usize, value: u64) {
        let within = offset % STRUCTURE;
        match offset & !(STRUCTURE - 1) {
            COMMON => {
                self.common_write(within, value);
                if size == 8 {
                    self.common_write(within + 4, value >> 32);
                }
            }
            DEVICE => {
                let bytes = value.to_le_bytes();
                self.device.config_write(within as usize, bytes.get(..size).unwrap_or(&bytes));
            }
            NOTIFY => self.notify(now, within / NOTIFY_MULTIPLIER as u64),
            _ => {}
        }
    }

    /// The configuration access capability: (range, offset, size), if what the driver set up is valid.
    fn window_target(&self) -> Option<(u8, u64, usize)> {
        let bar = self.config.byte(self.window + 4);
        let offset = self.config.read(self.window as u16 + 8, 4) as u64;
        let length = self.config.read(self.window as u16 + 12, 4) as usize;
        let valid = matches!(length, 1 | 2 | 4) && offset.is_multiple_of(length as u64) && offset < 0x4000;
        (valid && (bar == BAR || bar == MSIX_BAR)).then_some((bar, offset, length))
    }

    fn in_window(&self, offset: u16) -> bool {
        let data = self.window as u16 + 16;
        (data..data + 4).contains(&offset)
    }
}

/// The 32 bits of `features` that a selector shows.
fn select(features: u64, selector: u32) -> u64 {
    match selector {
        0 => features & 0xffff_ffff,
        1 => features >> 32,
        _ => 0,
    }
}

/// Where the field of the common configuration begins that `offset` is in.
fn field_start(offset: u64) -> u64 {
    match offset {
        0x00..0x10 | 0x20..0x38 => offset & !3,
        0x14 | 0x15 => offset,
        _ => offset & !1,
    }
}

impl<D: VirtioDevice> PciDevice for VirtioPci<D> {
    fn name(&self) -> &str {
        self.device.name()
    }

    fn attach(&mut self, attachment: Attachment) {
        self.attachment = Some(attachment);
    }

    fn config_read(&mut self, offset: u16, size: usize) -> u32 {
        if self.in_window(offset)
            && let Some((bar, at, length)) = self.window_target()
        {
            let value = self.bar_read(0, bar, at, length) as u32;
            let data = self.window + 16;
            self.config.set(data, &value.to_le_bytes());
        }
        self.config.read(offset, size)
    }

    fn config_write(&mut self, now: u64, offset: u16, size: usize, value: u32) {
        if self.in_window(offset) {
            if let Some((bar, at, length)) = self.window_target() {
                self.bar_write(now, bar, at, length, value as u64);
            }
            return;
        }
        self.config.write(offset, size, value);
        if let Some(a) = &self.attachment {
            self.msix.settle(&self.config, &a.messages);
            self.msi.settle(&mut self.config, &a.messages);
        }
        self.drive_intx();
    }

    fn ranges(&self) -> Vec<BarRange> {
        self.config.ranges()
    }

    fn bar_read(&mut self, _: u64, bar: u8, offset: u64, size: usize) -> u64 {
        match bar {
            BAR => {
                let value = self.structure_read(offset, size);
                value & (u64::MAX >> (64 - 8 * size.clamp(1, 8)))
            }
            MSIX_BAR => self.msix.read(offset, size),
            _ => 0,
        }
    }

    fn bar_write(&mut self, now: u64, bar: u8, offset: u64, size: usize, value: u64) {
        match bar {
            BAR => self.structure_write(now, offset, size, value),
            MSIX_BAR => {
                self.msix.write(offset, size, value);
                if let Some(a) = &self.attachment {
                    self.msix.settle(&self.config, &a.messages);
                }
            }
            _ => {}
        }
    }

    fn deadline(&self) -> u64 {
        self.deadline
    }

    fn tick(&mut self, now: u64) {
        if now < self.deadline {
            return;
        }
        self.deadline = NEVER;
        for i in 0..self.notified.len() {
            if std::mem::take(&mut self.notified[i]) && self.running() {
                self.serve(i);
            }
        }
    }

    fn poll(&mut self, _: u64) {
        if !self.running() {
            return;
        }
        let queues = self.device.poll().to_vec();
        for q in queues {
            self.serve(q);
        }
    }

    fn reset(&mut self) {
        self.reset_device();
        self.msix.reset();
        self.config.reset();
        self.drive_intx();
    }
}

//! CPUID leaves of a model (SDM vol. 2, CPUID—CPU Identification; APM vol. 3, Obtaining Processor Information Via the CPUID
//! Instruction).

use super::{Feature, Model, Register};
use crate::bits::Cr4;
use crate::performance;
use crate::state::Vendor;
use crate::xsave;

/// How many processors there are, all cores of one package, and which this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    pub cores: u32,
    pub apic_id: u32,
}

impl Default for Topology {
    fn default() -> Topology {
        Topology { cores: 1, apic_id: 0 }
    }
}

/// A cache's size and associativity; lines have 64 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cache {
    pub kib: u32,
    pub ways: u32,
}

impl Topology {
    /// Bits of the APIC id that number the core.
    fn shift(&self) -> u32 {
        self.cores.max(1).next_power_of_two().trailing_zeros()
    }
}

/// What leaves show of a processor's present state.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuidInputs {
    pub topology: Topology,
    pub cr4: Cr4,
    pub xcr0: u64,
    pub xss: u64,
    /// IA32_APIC_BASE.EN.
    pub apic_enabled: bool,
    /// IA32_MISC_ENABLE "limit CPUID maxval".
    pub limit_leaves: bool,
    /// TSC ticks and APIC timer ticks a second.
    pub tsc_hz: u64,
    pub timer_hz: u64,
}

type Leaf = [u32; 4];

/// Pages beyond the first that one INVLPGB invalidates at most.
pub const INVLPGB_COUNT_MAX: u32 = 7;
/// SVM's address-space identifiers.
pub const ASIDS: u32 = 0x8000;

impl Model {
    /// EAX, EBX, ECX, EDX for a leaf and sub-leaf.
    pub fn cpuid(&self, leaf: u32, subleaf: u32, now: &CpuidInputs) -> Leaf {
        let max = if now.limit_leaves { 3 } else { self.max_leaf };
        if leaf >> 31 != 0 {
            return if leaf <= self.max_extended_leaf {
                self.extended(leaf, subleaf, now)
            } else {
                self.beyond(subleaf, now, max)
            };
        }
        // Leaves of a hypervisor: KVM's, as far as its interface is in the model.
        match leaf {
            0x4000_0000 if self.has(Feature::KVM_PV_IPI) => return [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d],
            0x4000_0001 if self.has(Feature::KVM_PV_IPI) => return [self.register(leaf, 0, Register::Eax), 0, 0, 0],
            _ => {}
        }
        if leaf > max || leaf >> 30 != 0 {
            return self.beyond(subleaf, now, max);
        }
        self.basic(leaf, subleaf, now, max)
    }

    /// Above the highest leaf Intel answers as for the highest basic one, AMD with zeros.
    fn beyond(&self, subleaf: u32, now: &CpuidInputs, max: u32) -> Leaf {
        match self.vendor {
            Vendor::Intel => self.basic(max, subleaf, now, max),
            Vendor::Amd => [0; 4],
        }
    }

    fn register(&self, leaf: u32, subleaf: u32, register: Register) -> u32 {
        self.features.bits(leaf, subleaf, register)
    }

    fn vendor_string(&self) -> [u32; 3] {
        let text: &[u8; 12] = match self.vendor {
            Vendor::Intel => b"GenuineIntel",
            Vendor::Amd => b"AuthenticAMD",
        };
        // EBX, EDX, ECX in the order of the text; returned as EBX, ECX, EDX.
        let [b, d, c] = [0, 4, 8].map(|i| u32::from_le_bytes([text[i], text[i + 1], text[i + 2], text[i + 3]]));
        [b, c, d]
    }

    fn basic(&self, leaf: u32, subleaf: u32, now: &CpuidInputs, max: u32) -> Leaf {
        let t = &now.topology;
        let intel = self.vendor == Vendor::Intel;
        match leaf {
            0 => {
                let [b, c, d] = self.vendor_string();
                [max, b, c, d]
            }
            1 => self.leaf1(now),
            // Cache and TLB descriptors: "see leaf 4", "see leaf 18H".
            2 if intel => [0x00fe_ff01, 0xf0, 0, 0],
            4 if intel => self.leaf4(subleaf, t),
            // Monitor lines of 64 bytes; interrupts break even when masked; C0 and two C1 sub-states.
            5 if self.has(Feature::MONITOR) => [64, 64, 3, 0x20],
            6 => [self.register(6, 0, Register::Eax), 0, self.register(6, 0, Register::Ecx), 0],
            7 if subleaf == 0 => self.leaf7(now),
            0xa if self.has(Feature::ARCH_PERFMON) => self.leaf_a(),
            0xb => self.topology_leaf(subleaf, t, intel),
            0x1f if intel => self.topology_leaf(subleaf, t, true),
            0xd => self.leaf_d(subleaf, now),
            0x15 if intel => {
                let (hz, ratio) = (now.timer_hz, now.tsc_hz / now.timer_hz.max(1));
                [1, ratio as u32, hz as u32, 0]
            }
            0x16 if intel => {
                let mhz = (now.tsc_hz / 1_000_000) as u32;
                [mhz, mhz, 100, 0]
            }
            _ => [0; 4],
        }
    }

    fn leaf1(&self, now: &CpuidInputs) -> Leaf {
        let t = &now.topology;
        let mut ecx = self.register(1, 0, Register::Ecx);
        if now.cr4.contains(Cr4::OSXSAVE) {
            ecx |= 1 << 27;
        }
        let mut edx = self.register(1, 0, Register::Edx);
        if !now.apic_enabled {
            edx &= !(1 << 9);
        }
        if t.cores > 1 {
            edx |= 1 << 28;
        }
        let count = if t.cores > 1 { t.cores.next_power_of_two().min(255) } else { 1 };
        [self.signature, (t.apic_id & 0xff) << 24 | count << 16 | 8 << 8, ecx, edx]
    }

    /// The data caches, the first level first.
    pub fn data_caches(&self) -> [Cache; 3] {
        let second = if self.vendor == Vendor::Amd { 8 } else { 16 };
        [(32, 8), (self.l2_kib, second), (self.l3_kib, 16)].map(|(kib, ways)| Cache { kib, ways })
    }

    /// Deterministic cache parameters: L1D, L1I, L2, L3.
    fn leaf4(&self, subleaf: u32, t: &Topology) -> Leaf {
        let cores = (1u32 << t.shift()) - 1;
        let [l1, l2, l3] = self.data_caches();
        let (kind, level, Cache { kib, ways }, shared) = match subleaf {
            0 => (1, 1, l1, 0),
            1 => (2, 1, l1, 0),
            2 => (3, 2, l2, 0),
            3 => (3, 3, l3, cores),
            _ => return [0; 4],
        };
        let eax = kind | level << 5 | 1 << 8 | (shared & 0xfff) << 14 | (cores & 0x3f) << 26;
        [eax, (ways - 1) << 22 | 63, kib * 1024 / (64 * ways) - 1, 0]
    }

    fn leaf7(&self, now: &CpuidInputs) -> Leaf {
        let mut ecx = self.register(7, 0, Register::Ecx);
        if now.cr4.contains(Cr4::PKE) {
            ecx |= 1 << 4;
        }
        [0, self.register(7, 0, Register::Ebx), ecx, self.register(7, 0, Register::Edx)]
    }

    /// Architectural performance monitoring (SDM vol. 3, Architectural Performance Monitoring). All seven events are there.
    fn leaf_a(&self) -> Leaf {
        let unit = self.performance();
        let width = performance::WIDTH;
        let version = self.register(0xa, 0, Register::Eax);
        [version | (unit.general as u32) << 8 | width << 16 | 7 << 24, 0, 0, unit.fixed as u32 | width << 5]
    }

    /// Leaves 0BH and 1FH: one thread a core, all cores in one package.
    fn topology_leaf(&self, subleaf: u32, t: &Topology, _intel: bool) -> Leaf {
        match subleaf {
            0 => [0, 1, 1 << 8, t.apic_id],
            1 => [t.shift(), t.cores, 1 | 2 << 8, t.apic_id],
            _ => [0, 0, subleaf & 0xff, t.apic_id],
        }
    }

    fn leaf_d(&self, subleaf: u32, now: &CpuidInputs) -> Leaf {
        if !self.has(Feature::XSAVE) {
            return [0; 4];
        }
        let all = self.xcr0_bits();
        match subleaf {
            0 => {
                let enabled = xsave::standard_size(self.vendor, now.xcr0) as u32;
                [all as u32, enabled, xsave::standard_size(self.vendor, all) as u32, (all >> 32) as u32]
            }
            1 => {
                let size = xsave::compacted_size(self.vendor, now.xcr0 | now.xss) as u32;
                let compacted = self.has(Feature::XSAVEC) || self.has(Feature::XSAVES);
                [self.register(0xd, 1, Register::Eax), if compacted { size } else { 0 }, 0, 0]
            }
            _ => xsave::components(self.vendor)
                .iter()
                .find(|c| c.number == subleaf && subleaf < 64 && all >> subleaf & 1 != 0)
                .map_or([0; 4], |c| [c.size as u32, c.offset as u32, c.supervisor as u32 | (c.aligned as u32) << 1, 0]),
        }
    }

    fn extended(&self, leaf: u32, subleaf: u32, now: &CpuidInputs) -> Leaf {
        let t = &now.topology;
        let amd = self.vendor == Vendor::Amd;
        match leaf {
            0x8000_0000 if amd => {
                let [b, c, d] = self.vendor_string();
                [self.max_extended_leaf, b, c, d]
            }
            0x8000_0000 => [self.max_extended_leaf, 0, 0, 0],
            0x8000_0001 => self.extended1(now),
            0x8000_0002..=0x8000_0004 => self.brand_leaf(leaf - 0x8000_0002),
            // L1: TLBs, then size, associativity, lines per tag, line size.
            0x8000_0005 if amd => {
                [0xff40_ff40, 0xff40_ff40, 32 << 24 | 8 << 16 | 1 << 8 | 64, 32 << 24 | 8 << 16 | 1 << 8 | 64]
            }
            0x8000_0006 => {
                let l2 = self.l2_kib << 16 | if amd { 6 } else { 8 } << 12 | u32::from(amd) << 8 | 64;
                if amd {
                    [0x5c00_2200, 0x6c00_4200, l2, self.l3_kib / 512 << 18 | 9 << 12 | 1 << 8 | 64]
                } else {
                    [0, 0, l2, 0]
                }
            }
            0x8000_0007 => [0, 0, 0, self.register(leaf, 0, Register::Edx)],
            0x8000_0008 => {
                let cores = if amd { t.shift() << 12 | (t.cores.max(1) - 1) & 0xff } else { 0 };
                let ebx = self.register(leaf, 0, Register::Ebx);
                // INVLPGB's largest count; the last register that RDPRU knows, APERF.
                let edx = if self.has(Feature::INVLPGB) { INVLPGB_COUNT_MAX } else { 0 }
                    | if self.has(Feature::RDPRU) { 1 << 16 } else { 0 };
                [self.physical_bits | self.linear_bits() << 8, ebx, cores, edx]
            }
            // SVM revision 1.
            0x8000_000a if amd && self.has(Feature::SVM) => [1, ASIDS, 0, self.svm.bits()],
            // 1 GiB TLB entries.
            0x8000_0019 if amd => [0xf040_f040, 0xf040_0000, 0, 0],
            // Full-width vector units.
            0x8000_001a if amd => [6, 0, 0, 0],
            0x8000_001d if amd && self.has(Feature::TOPOEXT) => {
                let mut l = self.leaf4(subleaf, t);
                // AMD keeps the core count elsewhere; L3 edx: inclusive of nothing, L2 of L1.
                l[0] &= !(0x3f << 26);
                l[3] = u32::from(subleaf == 2) << 1;
                l
            }
            0x8000_001e if amd && self.has(Feature::TOPOEXT) => [t.apic_id, t.apic_id & 0xff, 0, 0],
            0x8000_0021 if amd => [self.register(leaf, 0, Register::Eax), 0, self.register(leaf, 0, Register::Ecx), 0],
            0x8000_0022 if amd => {
                let eax = self.register(leaf, 0, Register::Eax);
                [eax, if eax & 1 != 0 { self.performance().general as u32 } else { 0 }, 0, 0]
            }
            _ => [0; 4],
        }
    }

    fn extended1(&self, now: &CpuidInputs) -> Leaf {
        let leaf = 0x8000_0001;
        let mut ecx = self.register(leaf, 0, Register::Ecx);
        let mut edx = self.register(leaf, 0, Register::Edx);
        if self.vendor == Vendor::Amd {
            // AMD repeats the common bits of leaf 1.
            let mut low = self.register(1, 0, Register::Edx);
            if !now.apic_enabled {
                low &= !(1 << 9);
            }
            edx |= low & 0x0183_f3ff;
            if now.topology.cores > 1 {
                ecx |= 1 << 1;
            }
            return [self.signature, 4 << 28, ecx, edx];
        }
        [0, 0, ecx, edx]
    }

    fn brand_leaf(&self, part: u32) -> Leaf {
        let mut text = [0u8; 48];
        let brand = self.brand.as_bytes();
        let n = brand.len().min(47);
        text[..n].copy_from_slice(&brand[..n]);
        let at = part as usize * 16;
        [0, 4, 8, 12].map(|i| u32::from_le_bytes([text[at + i], text[at + i + 1], text[at + i + 2], text[at + i + 3]]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let now =
            CpuidInputs { apic_enabled: true, xcr0: 7, tsc_hz: 2_000_000_000, timer_hz: 1_000_000_000, ..Default::default() };
        for name in Model::names() {
            let m = Model::by_name(name).unwrap();
            // The hypervisor bit is clear.
            assert_eq!(m.cpuid(1, 0, &now)[2] >> 31, 0);
            assert_eq!(m.cpuid(0, 0, &now)[0], m.max_leaf);
            assert_eq!(m.cpuid(0xd, 0, &now)[1], 832);
            assert!(m.brand.len() < 48);
            assert_eq!(m.cpuid(0x8000_0002, 0, &now)[0].to_le_bytes()[..3], m.brand.as_bytes()[..3]);
        }
        let m = Model::skylake_server();
        assert_eq!(m.cpuid(1, 0, &now)[3] & 1 << 9, 1 << 9);
        let off = CpuidInputs { apic_enabled: false, ..now };
        assert_eq!(m.cpuid(1, 0, &off)[3] & 1 << 9, 0);
        // 2 GHz from a 1 GHz crystal.
        assert_eq!(m.cpuid(0x15, 0, &now), [1, 2, 1_000_000_000, 0]);
    }
}

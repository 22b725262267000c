//! Registers of a local APIC: byte offsets in the register page, in a virtual-APIC page and in an AVIC backing page (SDM vol. 3, Local
//! APIC Register Address Map; APM vol. 2, APIC Registers). An x2APIC MSR is 800H + offset / 16.

pub const ID: u32 = 0x20;
pub const VERSION: u32 = 0x30;
pub const TPR: u32 = 0x80;
pub const APR: u32 = 0x90;
pub const PPR: u32 = 0xa0;
pub const EOI: u32 = 0xb0;
pub const RRD: u32 = 0xc0;
pub const LDR: u32 = 0xd0;
pub const DFR: u32 = 0xe0;
pub const SVR: u32 = 0xf0;
pub const ISR: u32 = 0x100;
pub const TMR: u32 = 0x180;
pub const IRR: u32 = 0x200;
pub const ESR: u32 = 0x280;
pub const LVT_CMCI: u32 = 0x2f0;
pub const ICR: u32 = 0x300;
pub const ICR_HIGH: u32 = 0x310;
pub const LVT_TIMER: u32 = 0x320;
pub const LVT_THERMAL: u32 = 0x330;
pub const LVT_PERFORMANCE: u32 = 0x340;
pub const LVT_LINT0: u32 = 0x350;
pub const LVT_LINT1: u32 = 0x360;
pub const LVT_ERROR: u32 = 0x370;
pub const INITIAL_COUNT: u32 = 0x380;
pub const CURRENT_COUNT: u32 = 0x390;
pub const DIVIDE: u32 = 0x3e0;
pub const SELF_IPI: u32 = 0x3f0;

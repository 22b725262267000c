//! Laws of the TLB: what it answers is what a fresh walk would say, once what changed has been invalidated.

use proptest::prelude::*;
use undervisor_core::{Cr0, Cr4, Efer, Vector};

use crate::cpu::{Cpu, Stop};
use crate::testing::processor;

const TABLES: u64 = 0x2_0000;

/// 4-level paging with 64 pages of page table at linear 0, all mapped one to one, user and writable.
fn paged() -> Box<Cpu> {
    let mut cpu = processor(64);
    let m = &cpu.shared.memory;
    for (at, e) in [(0, 0x1007u64), (0x1000, 0x2007), (0x2000, 0x3007)] {
        m.write::<u64>(TABLES + at, TABLES + e).expect("RAM");
    }
    for page in (0..64).rev() {
        m.write::<u64>(pte(page), (page & 15) << 12 | 7).expect("RAM");
        m.write::<u64>(((page & 15) << 12) + 8, page & 15).expect("RAM");
    }
    let s = &mut cpu.state;
    s.cr3 = TABLES;
    s.cr4 |= Cr4::PAE;
    s.efer |= Efer::NXE;
    s.cr0 |= Cr0::PG | Cr0::WP;
    cpu.mode_changed();
    cpu
}

fn pte(page: u64) -> u64 {
    TABLES + 0x3000 + page * 8
}

#[test]
fn first_write_sets_dirty() {
    let mut cpu = paged();
    assert_eq!(cpu.read_linear::<u64>(0x5008), Ok(5));
    assert_eq!(cpu.shared.memory.read::<u64>(pte(5)), Some(0x5027));
    cpu.write_linear::<u64>(0x5008, 99).expect("writable");
    assert_eq!(cpu.shared.memory.read::<u64>(pte(5)), Some(0x5067));
    assert_eq!(cpu.read_linear::<u64>(0x5008), Ok(99));
}

#[test]
fn large_pages_are_dropped_whole() {
    let mut cpu = paged();
    cpu.shared.memory.write::<u64>(TABLES + 0x2008, 0x87).expect("RAM");
    assert_eq!(cpu.read_linear::<u64>(0x20_5008), Ok(5));
    assert_eq!(cpu.read_linear::<u64>(0x20_6008), Ok(6));
    cpu.shared.memory.write::<u64>(TABLES + 0x2008, 0).expect("RAM");
    cpu.flush_page(0x20_0000);
    assert_eq!(cpu.read_linear::<u64>(0x20_6008), Err(Stop::Exception));
    assert_eq!((cpu.exception.vector, cpu.exception.error_code, cpu.exception.payload), (Vector::PF, Some(0), 0x20_6008));
    assert_eq!(cpu.translate_fetch(0x20_5008), Err(Stop::Exception));
}

#[test]
fn large_pages_that_share_a_slot() {
    let mut cpu = paged();
    // 1 GiB apart: the same slot.
    let (one, other) = (0x20_0000, 0x4020_0000);
    cpu.shared.memory.write::<u64>(TABLES + 0x2008, 0x87).expect("RAM");
    cpu.shared.memory.write::<u64>(TABLES + 0x1008, TABLES + 0x2007).expect("RAM");
    for _ in 0..2 {
        assert_eq!(cpu.read_linear::<u64>(one + 0x5008), Ok(5));
        assert_eq!(cpu.read_linear::<u64>(other + 0x6008), Ok(6));
    }
    cpu.shared.memory.write::<u64>(TABLES + 0x2008, 0).expect("RAM");
    cpu.flush_page(one);
    assert_eq!(cpu.read_linear::<u64>(one + 0x5008), Err(Stop::Exception));
    cpu.flush_page(other);
    assert_eq!(cpu.read_linear::<u64>(other + 0x6008), Err(Stop::Exception));
}

#[test]
fn invlpg_of_one_large_page_leaves_others_alone() {
    let mut cpu = paged();
    cpu.shared.memory.write::<u64>(TABLES + 0x2008, 0x87).expect("RAM");
    cpu.shared.memory.write::<u64>(TABLES + 0x2018, 0x87).expect("RAM");
    assert_eq!(cpu.read_linear::<u64>(0x20_5008), Ok(5));
    assert_eq!(cpu.read_linear::<u64>(0x60_6008), Ok(6));
    let misses = cpu.counters.tlb_misses;
    cpu.flush_page(0x20_0000);
    assert_eq!(cpu.read_linear::<u64>(0x60_6008), Ok(6));
    assert_eq!(cpu.counters.tlb_misses, misses);
}

#[test]
fn alignment_checks_bypass_the_tlb() {
    let mut cpu = paged();
    cpu.state.cpl = 3;
    cpu.privilege_changed();
    assert_eq!(cpu.read_linear::<u32>(0x5009), Ok(0));
    cpu.state.cr0 |= Cr0::AM;
    cpu.state.set_flag(undervisor_core::Rflags::AC, true);
    cpu.mode_changed();
    assert_eq!(cpu.read_linear::<u32>(0x5009), Err(Stop::Exception));
    assert_eq!(cpu.exception.vector, Vector::AC);
}

#[derive(Clone, Debug)]
enum Step {
    Read(u64),
    Write(u64),
    Fetch(u64),
    /// Point a page at another frame with these rights, and INVLPG.
    Map(u64, u64, u64),
    Cpl(u8),
    Wp(bool),
    Smap(bool),
    /// Reload CR3, or change to a second set of tables sharing the page table.
    Cr3,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let page = 0..64u64;
    let step = prop_oneof![
        4 => page.clone().prop_map(Step::Read),
        4 => page.clone().prop_map(Step::Write),
        2 => page.clone().prop_map(Step::Fetch),
        3 => (page, 0..16u64, any::<u64>()).prop_map(|(p, f, r)| Step::Map(p, f, r)),
        1 => prop_oneof![Just(0u8), Just(3)].prop_map(Step::Cpl),
        1 => any::<bool>().prop_map(Step::Wp),
        1 => any::<bool>().prop_map(Step::Smap),
        1 => Just(Step::Cr3),
    ];
    proptest::collection::vec(step, 1..60)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    /// Every access answers as a processor without any TLB would.
    #[test]
    fn tlb_agrees_with_fresh_walks(steps in steps()) {
        let mut cpu = paged();
        for step in steps {
            let entry = |cpu: &Cpu, page| cpu.shared.memory.read::<u64>(pte(page)).expect("RAM");
            let (cpl, wp) = (cpu.state.cpl, cpu.state.cr0.contains(Cr0::WP));
            let smap = cpu.state.cr4.contains(Cr4::SMAP);
            match step {
                Step::Read(page) => {
                    let e = entry(&cpu, page);
                    let ok = e & 1 != 0 && if cpl == 3 { e & 4 != 0 } else { !(smap && e & 4 != 0) };
                    let frame = e >> 12 & 0xff;
                    let want = cpu.shared.memory.read::<u64>((frame << 12) + 8).expect("RAM");
                    prop_assert_eq!(cpu.read_linear::<u64>((page << 12) + 8), if ok { Ok(want) } else { Err(Stop::Exception) });
                }
                Step::Write(page) => {
                    let e = entry(&cpu, page);
                    let right = if cpl == 3 { e & 6 == 6 } else { !(smap && e & 4 != 0) && (e & 2 != 0 || !wp) };
                    let ok = e & 1 != 0 && right;
                    let done = cpu.write_linear::<u64>((page << 12) + 8, page * 3);
                    prop_assert_eq!(done.is_ok(), ok);
                    if ok {
                        prop_assert_eq!(entry(&cpu, page) & 0x60, 0x60);
                        let frame = e >> 12 & 0xff;
                        prop_assert_eq!(cpu.shared.memory.read::<u64>((frame << 12) + 8), Some(page * 3));
                    }
                }
                Step::Fetch(page) => {
                    let e = entry(&cpu, page);
                    let ok = e & 1 != 0 && e >> 63 == 0 && (cpl != 3 || e & 4 != 0);
                    prop_assert_eq!(cpu.translate_fetch(page << 12).is_ok(), ok);
                }
                Step::Map(page, frame, rights) => {
                    cpu.shared.memory.write::<u64>(pte(page), frame << 12 | rights & (1 << 63 | 7)).expect("RAM");
                    cpu.flush_page(page << 12);
                }
                Step::Cpl(cpl) => {
                    cpu.state.cpl = cpl;
                    cpu.privilege_changed();
                }
                Step::Wp(on) => {
                    cpu.state.cr0.set(Cr0::WP, on);
                    cpu.mode_changed();
                }
                Step::Smap(on) => {
                    cpu.state.cr4.set(Cr4::SMAP, on);
                    cpu.mode_changed();
                }
                Step::Cr3 => cpu.cr3_written(false),
            }
        }
    }
}

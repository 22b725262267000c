use super::*;

const RAM: u64 = 1 << 20;

fn memory() -> GuestMemory {
    GuestMemory::new(RAM, RAM, &[]).expect("a small guest memory")
}

fn paging(mode: PagingMode, amd: bool, set: impl FnOnce(&mut Paging)) -> Paging {
    let mut p = Paging { mode, root: 0x1000, nxe: true, wp: true, pse: true, ..Paging::default() };
    p.pdpte = [0x3001, 0, 0, 0x3001];
    set(&mut p);
    p.prepare(&Limits { physical_bits: 40, gigabyte_pages: true, amd });
    p
}

fn go(m: &GuestMemory, p: &Paging, r: Request) -> Result<Translation, u32> {
    walk(&mut Plain { memory: m, wrote: &|_| {} }, p, &r).map_err(|f| match f {
        WalkFault::Page(code) => code,
        WalkFault::Nested(never) => match never {},
    })
}

/// PML4 at 0x1000, PDPT 0x2000, PD 0x3000, PT 0x4000; linear 0x5123 → 0x9123 with `leaf` rights.
fn tables(m: &GuestMemory, leaf: u64) {
    for (at, e) in [(0x1000, 0x2007), (0x2000, 0x3007), (0x3000, 0x4007), (0x4028, 0x9000 | leaf)] {
        m.write::<u64>(at, e).expect("RAM");
    }
}

const READ: Request = Request { linear: 0x5123, write: false, fetch: false, user: false, smap_off: false };
const WRITE: Request = Request { write: true, ..READ };
const FETCH: Request = Request { fetch: true, ..READ };
const USER: Request = Request { user: true, ..READ };
const USER_WRITE: Request = Request { user: true, ..WRITE };
const USER_FETCH: Request = Request { user: true, ..FETCH };

#[test]
fn four_levels_and_flags() {
    let m = memory();
    tables(&m, P | W | U);
    let p = paging(PagingMode::Level4, false, |_| {});
    let t = go(&m, &p, READ).expect("mapped");
    assert_eq!((t.physical, t.page_bits, t.write_ready), (0x9123, 12, false));
    for (at, e) in [(0x1000, 0x2027u64), (0x2000, 0x3027), (0x3000, 0x4027), (0x4028, 0x9027)] {
        assert_eq!(m.read::<u64>(at), Some(e));
    }
    assert!(go(&m, &p, WRITE).expect("writable").write_ready);
    assert_eq!(m.read::<u64>(0x4028), Some(0x9067));
    assert!(go(&m, &p, READ).expect("mapped").write_ready);
}

#[test]
fn a_failed_walk_sets_no_flag() {
    let m = memory();
    tables(&m, P);
    let p = paging(PagingMode::Level4, false, |_| {});
    assert_eq!(go(&m, &p, WRITE), Err(pf::P | pf::W));
    assert_eq!(m.read::<u64>(0x1000), Some(0x2007));
}

#[test]
fn error_codes() {
    let m = memory();
    let p = paging(PagingMode::Level4, false, |_| {});
    let sm = paging(PagingMode::Level4, false, |p| (p.smep, p.smap) = (true, true));
    let nowp = paging(PagingMode::Level4, false, |p| p.wp = false);
    let nonx = paging(PagingMode::Level4, false, |p| p.nxe = false);
    let bad = |leaf, p: &Paging, r| {
        tables(&m, leaf);
        go(&m, p, r).expect_err("a fault")
    };
    assert_eq!(bad(0, &p, READ), 0);
    assert_eq!(bad(0, &p, USER_WRITE), pf::W | pf::U);
    assert_eq!(bad(0, &p, FETCH), pf::I);
    assert_eq!(bad(0, &nonx, FETCH), 0);
    assert_eq!(bad(P, &p, USER), pf::P | pf::U);
    assert_eq!(bad(P | U, &p, USER_WRITE), pf::P | pf::W | pf::U);
    assert_eq!(bad(P | U, &nowp, USER_WRITE), pf::P | pf::W | pf::U);
    assert_eq!(bad(P | U | NX, &p, USER_FETCH), pf::P | pf::U | pf::I);
    assert_eq!(bad(P | NX, &nonx, READ), pf::P | pf::RSVD);
    assert_eq!(bad(P | 1 << 40, &p, READ), pf::P | pf::RSVD);
    assert_eq!(bad(P | U | W, &sm, READ), pf::P);
    assert_eq!(bad(P | U | W, &sm, WRITE), pf::P | pf::W);
    assert_eq!(bad(P | U | W, &sm, FETCH), pf::P | pf::I);
    tables(&m, P);
    assert!(go(&m, &nowp, WRITE).is_ok());
    tables(&m, P | U | W);
    assert!(go(&m, &sm, Request { smap_off: true, ..WRITE }).is_ok());
    assert!(go(&m, &sm, Request { user: true, ..FETCH }).is_ok());
}

#[test]
fn protection_keys() {
    let m = memory();
    let with = |pkru| paging(PagingMode::Level4, false, |p| (p.pke, p.pkru) = (true, pkru));
    tables(&m, P | U | W | 5 << 59);
    assert_eq!(go(&m, &with(1 << 10), READ), Err(pf::P | pf::PK));
    assert_eq!(go(&m, &with(2 << 10), USER_WRITE), Err(pf::P | pf::W | pf::U | pf::PK));
    assert!(go(&m, &with(2 << 10), USER).is_ok());
    assert!(go(&m, &with(3 << 10), USER_FETCH).is_ok());
    tables(&m, P | W | 5 << 59);
    assert!(go(&m, &with(3 << 10), WRITE).is_ok());
}

#[test]
fn large_pages_and_reserved_bits() {
    let m = memory();
    let p = paging(PagingMode::Level4, false, |_| {});
    tables(&m, P);
    m.write::<u64>(0x3000, 0x60_0000 | P | PS).expect("RAM");
    assert_eq!(go(&m, &p, READ).map(|t| (t.physical, t.page_bits)), Ok((0x60_5123, 21)));
    m.write::<u64>(0x3000, 0x60_2000 | P | PS).expect("RAM");
    assert_eq!(go(&m, &p, READ), Err(pf::P | pf::RSVD));
    m.write::<u64>(0x2000, 0x4000_0000 | P | PS).expect("RAM");
    assert_eq!(go(&m, &p, READ).map(|t| (t.physical, t.page_bits)), Ok((0x4000_5123, 30)));
    let mut small = p;
    small.prepare(&Limits { physical_bits: 40, gigabyte_pages: false, amd: false });
    assert_eq!(go(&m, &small, READ), Err(pf::P | pf::RSVD));
    m.write::<u64>(0x1000, 0x2000 | P | G).expect("RAM");
    assert!(go(&m, &p, READ).is_ok());
    assert_eq!(go(&m, &paging(PagingMode::Level4, true, |_| {}), READ), Err(pf::P | pf::RSVD));
    m.write::<u64>(0x1000, 0x2000 | P | PS).expect("RAM");
    assert_eq!(go(&m, &p, READ), Err(pf::P | pf::RSVD));
}

#[test]
fn five_levels() {
    let m = memory();
    tables(&m, P | W | U);
    m.write::<u64>(0x6000 + 3 * 8, 0x1007).expect("RAM");
    let p = paging(PagingMode::Level5, false, |p| p.root = 0x6000);
    assert_eq!(go(&m, &p, Request { linear: 3 << 48 | 0x5123, ..READ }).map(|t| t.physical), Ok(0x9123));
    assert_eq!(go(&m, &p, READ), Err(0));
}

#[test]
fn pae_and_legacy() {
    let m = memory();
    tables(&m, P | W | U);
    let p = paging(PagingMode::Pae, false, |_| {});
    assert_eq!(go(&m, &p, READ).map(|t| t.physical), Ok(0x9123));
    assert_eq!(go(&m, &p, Request { linear: 0xc000_5123, ..READ }).map(|t| t.physical), Ok(0x9123));
    assert_eq!(go(&m, &p, Request { linear: 0x4000_5123, ..READ }), Err(0));
    tables(&m, P | 1 << 52);
    assert_eq!(go(&m, &p, READ), Err(pf::P | pf::RSVD));

    let p = paging(PagingMode::Bits32, false, |_| {});
    m.write::<u32>(0x1000, 0x4003).expect("RAM");
    m.write::<u32>(0x4014, 0x9001).expect("RAM");
    assert_eq!(go(&m, &p, READ).map(|t| t.physical), Ok(0x9123));
    assert_eq!(go(&m, &p, WRITE), Err(pf::P | pf::W));
    assert_eq!(go(&m, &p, FETCH).map(|t| t.physical), Ok(0x9123));
    // PSE-36: bits 20:13 are address bits 39:32.
    m.write::<u32>(0x1000, 0x0080_0083 | 0x5 << 13).expect("RAM");
    assert_eq!(go(&m, &p, READ).map(|t| (t.physical, t.page_bits)), Ok((0x5_0080_5123, 22)));
    m.write::<u32>(0x1000, 0x0080_0083 | 1 << 21).expect("RAM");
    assert_eq!(go(&m, &p, READ), Err(pf::P | pf::RSVD));
}

use std::cell::RefCell;
use std::rc::Rc;

use undervisor_core::Model;
use undervisor_machine::{CharBackend, Host, Image, MachineConfig};

use super::*;

struct Serial(Rc<RefCell<Vec<u8>>>);

impl CharBackend for Serial {
    fn write(&mut self, byte: u8) {
        self.0.borrow_mut().push(byte);
    }
}

struct NoInput;
impl Host for NoInput {}

/// Every round trip takes place, and none of them flushes a TLB, misses in it, decodes a block or allocates memory.
#[test]
fn round_trips_leave_the_caches_alone() {
    const ROUNDS: u32 = 2000;
    for guest in guests(ROUNDS).into_iter().filter(|g| g.name.starts_with("exit-")) {
        let serial = Rc::new(RefCell::new(Vec::new()));
        let model = if guest.processor == Processor::Svm { Model::epyc_milan() } else { Model::default() };
        let config = MachineConfig::new().memory(32 << 20).serial(Serial(serial.clone())).model(model);
        let mut machine = config.flat(Image::new("floppy", guest.image), 0x7c00).build().expect("a machine");
        let done = |marks: &RefCell<Vec<u8>>| String::from_utf8_lossy(&marks.borrow()).contains("@DONE");
        let (mut half, mut allocations) = (None, 0);
        for step in 1..400 {
            if done(&serial) {
                break;
            }
            let memory = allocation_counter::measure(|| {
                machine.run_until(step * 5000, &mut NoInput);
            });
            allocations += if half.is_some() { memory.count_total } else { 0 };
            let counters = machine.cpus()[0].counters.clone();
            if half.is_none() && counters.vm_exits > ROUNDS as u64 / 2 {
                half = Some(counters);
            }
        }
        let name = &guest.name;
        let text = String::from_utf8_lossy(&serial.borrow()).into_owned();
        assert!(text.contains(&format!("@E {name}")) && !text.contains("@FAIL"), "{name}: {text}");
        let (half, end) = (half.expect("half of the exits"), machine.cpus()[0].counters.clone());
        assert_eq!(end.vm_exits, ROUNDS as u64, "{name}");
        assert_eq!(end.space_flushes, 0, "{name}");
        // What the end mark needs, and where slices end: nothing for each exit.
        assert!(end.blocks_decoded - half.blocks_decoded < 50, "{name}: {half:?} {end:?}");
        assert!(allocations < 200, "{name}: {allocations} allocations");
        // Without a mapping nothing enters the TLB: each violation is a walk.
        let walks = if name.ends_with("violation") { ROUNDS as u64 } else { 4 };
        assert!(end.tlb_misses - half.tlb_misses <= walks, "{name}: {half:?} {end:?}");
    }
}

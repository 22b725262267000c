//! The VM-entry checks as a Markdown list: `cargo run -p undervisor-vmx --example checks > docs/vmx-entry-checks.md`

use undervisor_vmx::checks::{Outcome, TABLES};

fn main() {
    println!("# VM-entry checks\n\nIn the order in which VM entry makes them. Made from the tables in `vmx/src/checks`.");
    for table in TABLES {
        let outcome = match table.outcome {
            Outcome::InvalidControl => "VMfailValid(7)",
            Outcome::InvalidHostState => "VMfailValid(8)",
            Outcome::InvalidGuestState => "VM exit 33",
        };
        println!("\n## {}\n\nIf one fails: {outcome}.\n\n| check | field | rule |\n|---|---|---|", table.section);
        for c in table.checks {
            let qualification =
                if c.qualification == 0 { String::new() } else { format!(" (qualification {})", c.qualification) };
            println!("| {} | {:?} | {}{qualification} |", c.name, c.field, c.rule.replace('|', "\\|"));
        }
    }
}

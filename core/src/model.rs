//! Processor models: what CPUID, the capability MSRs and vendor rules say.

use crate::state::Vendor;

/// A processor model.
#[derive(Clone, Debug)]
pub struct Model {
    pub name: &'static str,
    pub vendor: Vendor,
}

impl Default for Model {
    fn default() -> Model {
        Model { name: "skylake-server", vendor: Vendor::Intel }
    }
}

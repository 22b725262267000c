//! 256-bit vector sets: ISR, TMR and IRR, in local APICs and in virtual-APIC pages alike.

/// One bit a vector, 32 to a word, as eight registers hold them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Vectors(pub [u32; 8]);

impl Vectors {
    pub fn contains(&self, vector: u8) -> bool {
        self.0[vector as usize / 32] >> (vector % 32) & 1 != 0
    }
    pub fn set(&mut self, vector: u8, on: bool) {
        let word = &mut self.0[vector as usize / 32];
        let bit = 1 << (vector % 32);
        *word = if on { *word | bit } else { *word & !bit };
    }
    /// The highest vector in the set.
    pub fn highest(&self) -> Option<u8> {
        let word = self.0.iter().rposition(|w| *w != 0)?;
        Some((word * 32) as u8 + 31 - self.0[word].leading_zeros() as u8)
    }
}

/// Processor priority from the task priority and the highest vector in service (SDM vol. 3, Task and Processor Priorities).
pub fn processor_priority(tpr: u8, in_service: Option<u8>) -> u8 {
    let isrv = in_service.unwrap_or(0);
    if tpr >> 4 >= isrv >> 4 { tpr } else { isrv & 0xf0 }
}

/// The highest requested vector if its class is above the processor priority's.
pub fn deliverable(requested: Option<u8>, processor_priority: u8) -> Option<u8> {
    requested.filter(|v| v >> 4 > processor_priority >> 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_of_each() {
        let mut v = Vectors::default();
        assert_eq!(v.highest(), None);
        for n in 0..=255u8 {
            v.set(n, true);
            assert_eq!(v.highest(), Some(n));
            assert!(v.contains(n));
        }
        v.set(255, false);
        assert_eq!(v.highest(), Some(254));
    }

    #[test]
    fn priorities() {
        assert_eq!(processor_priority(0x25, Some(0x31)), 0x30);
        assert_eq!(processor_priority(0x35, Some(0x31)), 0x35);
        assert_eq!(deliverable(Some(0x3f), 0x30), None);
        assert_eq!(deliverable(Some(0x40), 0x3f), Some(0x40));
    }
}

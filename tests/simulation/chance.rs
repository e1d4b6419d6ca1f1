//! Chance from a seed: the same seed, the same world, on every machine.
//!
//! SplitMix64 (Steele, Lea, Flood 2014): small, and good enough to be unkind with.

use std::time::Duration;

/// A source of chance.
pub struct Chance(u64);

impl Chance {
    pub fn new(seed: u64) -> Chance {
        // Neighbouring seeds shall not begin alike.
        let mut chance = Chance(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0x5DEE_CE66_D1CE_4E5B);
        chance.draw();
        chance
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// From `low` up to and with `high`.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        if high <= low {
            return low;
        }
        low + self.draw() % (high - low + 1)
    }

    /// Below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.draw() % n as u64) as usize
    }

    /// True `n` times in a thousand.
    pub fn permille(&mut self, n: u64) -> bool {
        n > 0 && self.draw() % 1000 < n
    }

    /// Up to `most` nanoseconds; short ones are more likely than long ones.
    pub fn up_to(&mut self, most: Duration) -> u64 {
        let most = most.as_nanos() as u64;
        let share = self.between(0, 1000) * self.between(0, 1000);
        (most / 1_000_000) * share + self.between(0, 999)
    }

    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

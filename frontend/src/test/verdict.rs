//! What a test's output and exit code say.

use undervisor_machine::{StopReason, status};

/// A test's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    Skip,
    Fail(String),
}

impl Verdict {
    pub fn failed(&self) -> bool {
        matches!(self, Verdict::Fail(_))
    }

    /// From the exit code of `undervisor run` (isa-debug-exit's `value << 1 | 1`: 0 passed, 77 all skipped) and the lines.
    pub fn of(code: Option<i32>, report: &Report, errors: &str) -> Verdict {
        const PASSED: i32 = 1;
        const SKIPPED: i32 = 77 << 1 | 1;
        const ABORTED: i32 = 127 << 1 | 1;
        let ours = |r: &StopReason| i32::from(r.exit_status());
        match code {
            // A test without a debug-exit device would power off.
            Some(0 | PASSED) if report.failures.is_empty() => {
                if report.passed == 0 && report.skipped > 0 {
                    Verdict::Skip
                } else {
                    Verdict::Pass
                }
            }
            Some(0 | PASSED) => Verdict::Fail("FAIL lines, yet success as exit code".into()),
            Some(SKIPPED) => Verdict::Skip,
            Some(ABORTED) => Verdict::Fail("aborted".into()),
            Some(c) if c & 1 == 1 => Verdict::Fail(format!("exit code {}", c >> 1)),
            Some(c) if c == ours(&StopReason::InstructionLimit(0)) => Verdict::Fail("hang: instruction limit".into()),
            Some(c) if c == i32::from(status::TIME_LIMIT) => Verdict::Fail("hang: time limit".into()),
            Some(_) => Verdict::Fail(errors.lines().last().unwrap_or("undervisor failed").to_owned()),
            None => Verdict::Fail(format!("undervisor crashed: {}", errors.lines().next().unwrap_or("no message"))),
        }
    }
}

/// What is known about a test that ran.
#[derive(Clone, Debug)]
pub struct Report {
    pub name: String,
    pub verdict: Verdict,
    pub passed: usize,
    pub skipped: usize,
    /// The FAIL lines.
    pub failures: Vec<String>,
    pub seconds: f64,
    pub output: String,
}

impl Report {
    /// Count the lines of a test's output.
    pub fn read(name: &str, output: &str, seconds: f64) -> Report {
        let mut report = Report {
            name: name.to_owned(),
            verdict: Verdict::Pass,
            passed: 0,
            skipped: 0,
            failures: Vec::new(),
            seconds,
            output: String::new(),
        };
        for line in output.lines().map(str::trim) {
            // XFAIL lines are failures that the test expects.
            if line.starts_with("PASS") {
                report.passed += 1;
            } else if line.starts_with("FAIL") {
                report.failures.push(line.to_owned());
            } else if line.starts_with("SKIP") {
                report.skipped += 1;
            }
        }
        report
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let (word, why) = match &self.verdict {
            Verdict::Pass => ("PASS", String::new()),
            Verdict::Skip => ("SKIP", String::new()),
            Verdict::Fail(why) => ("FAIL", format!("  {why}")),
        };
        format!(
            "{word} {:<32} {:>5} passed {:>3} failed {:>3} skipped {:>7.1} s{why}",
            self.name,
            self.passed,
            self.failures.len(),
            self.skipped,
            self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(code: Option<i32>, output: &str) -> Verdict {
        Verdict::of(code, &Report::read("t", output, 0.0), "host trouble")
    }

    #[test]
    fn codes_and_lines() {
        assert_eq!(verdict(Some(1), "PASS: a\nPASS: b\nSUMMARY: 2 tests\n"), Verdict::Pass);
        assert_eq!(verdict(Some(1), "SKIP: no feature\n"), Verdict::Skip);
        assert_eq!(verdict(Some(155), ""), Verdict::Skip);
        assert!(verdict(Some(1), "FAIL: a\n").failed());
        assert!(verdict(Some(3), "PASS: a\nFAIL: b\n").failed());
        assert_eq!(verdict(Some(6), ""), Verdict::Fail("hang: instruction limit".into()));
        assert_eq!(verdict(Some(4), ""), Verdict::Fail("host trouble".into()));
        assert!(verdict(None, "").failed());
        assert_eq!(Report::read("t", "XFAIL: known\n", 0.0).failures.len(), 0);
    }
}

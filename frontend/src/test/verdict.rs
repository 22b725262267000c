//! What a test's output and exit code say.

use undervisor_machine::{StopReason, status};

/// A test's outcome.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    Pass,
    /// Nothing was tested, for this reason.
    Skip(String),
    Fail(String),
}

impl Verdict {
    pub fn failed(&self) -> bool {
        matches!(self, Verdict::Fail(_))
    }

    /// From the exit code of `undervisor run` (isa-debug-exit's `value << 1 | 1`, so that 1 is passed; 77 is what
    /// kvm-unit-tests make of "all skipped") and the lines.
    pub fn of(code: Option<i32>, report: &Report, errors: &str) -> Verdict {
        const PASSED: i32 = 1;
        const SKIPPED: i32 = 77;
        const FAILED: i32 = 1 << 1 | 1;
        const ABORTED: i32 = 127 << 1 | 1;
        let ours = |r: &StopReason| i32::from(r.exit_status());
        match code {
            // A test without a debug-exit device would power off.
            Some(0 | PASSED) if report.failures.is_empty() => {
                if report.passed == 0 && !report.skips.is_empty() {
                    report.skip()
                } else {
                    Verdict::Pass
                }
            }
            Some(0 | PASSED) => Verdict::Fail("FAIL lines, yet success as exit code".into()),
            Some(SKIPPED) if report.failures.is_empty() => report.skip(),
            // Failures all of which are passes where a failure was expected: of a test that knows a fault of its usual host.
            Some(FAILED) if report.failures.is_empty() && report.unexpected > 0 && report.summary_agrees() => Verdict::Pass,
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
    /// What the SKIP lines say.
    pub skips: Vec<String>,
    /// XPASS lines.
    pub unexpected: usize,
    /// The failures that the SUMMARY line counts.
    pub summary: Option<usize>,
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
            skips: Vec::new(),
            unexpected: 0,
            summary: None,
            failures: Vec::new(),
            seconds,
            output: String::new(),
        };
        for line in output.lines().map(str::trim) {
            // XFAIL lines are failures that the test expects.
            if line.starts_with("PASS") {
                report.passed += 1;
            } else if line.starts_with("XPASS") {
                report.unexpected += 1;
            } else if let Some(text) = line.strip_prefix("SUMMARY") {
                let count = text.split(", ").find_map(|part| part.strip_suffix(" unexpected failures"));
                report.summary = count.map_or(Some(0), |n| n.parse().ok());
            } else if line.starts_with("FAIL") {
                report.failures.push(line.to_owned());
            } else if let Some(why) = line.strip_prefix("SKIP") {
                report.skips.push(why.trim_start_matches(':').trim().to_owned());
            }
        }
        report
    }

    /// Whether the test's own count of failures is that of its XPASS lines.
    fn summary_agrees(&self) -> bool {
        self.summary == Some(self.unexpected)
    }

    /// The verdict that nothing was tested, with what the test says about it.
    fn skip(&self) -> Verdict {
        Verdict::Skip(self.skips.first().cloned().unwrap_or_else(|| "the test skipped itself".into()))
    }

    /// A test that is not run.
    pub fn not_run(name: &str, why: String) -> Report {
        Report { verdict: Verdict::Skip(why), ..Report::read(name, "", 0.0) }
    }

    /// One line for people.
    pub fn line(&self) -> String {
        let (word, why) = match &self.verdict {
            Verdict::Pass if self.unexpected > 0 => ("PASS", format!("  {} of them expected to fail", self.unexpected)),
            Verdict::Pass => ("PASS", String::new()),
            Verdict::Skip(why) => ("SKIP", format!("  {why}")),
            Verdict::Fail(why) => ("FAIL", format!("  {why}")),
        };
        format!(
            "{word} {:<32} {:>5} passed {:>3} failed {:>3} skipped {:>7.1} s{why}",
            self.name,
            self.passed + self.unexpected,
            self.failures.len(),
            self.skips.len(),
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
        assert_eq!(verdict(Some(1), "SKIP: no feature\n"), Verdict::Skip("no feature".into()));
        assert!(matches!(verdict(Some(77), ""), Verdict::Skip(_)));
        assert!(verdict(Some(77), "FAIL: a\n").failed());
        assert!(verdict(Some(1), "FAIL: a\n").failed());
        assert!(verdict(Some(3), "PASS: a\nFAIL: b\n").failed());
        assert_eq!(verdict(Some(6), ""), Verdict::Fail("hang: instruction limit".into()));
        assert_eq!(verdict(Some(4), ""), Verdict::Fail("host trouble".into()));
        assert!(verdict(None, "").failed());
        let xpass = "XPASS: a\nPASS: b\nSUMMARY: 2 tests, 1 unexpected failures\n";
        assert_eq!(verdict(Some(3), xpass), Verdict::Pass);
        assert!(verdict(Some(3), &xpass.replace("1 unexp", "2 unexp")).failed());
        assert!(verdict(Some(3), &format!("{xpass}FAIL: c\n")).failed());
        assert_eq!(Report::read("t", "XFAIL: known\n", 0.0).failures.len(), 0);
    }
}

//! The JUnit report.

use super::verdict::{Report, Verdict};

/// Most output of one test that goes into the report.
const OUTPUT: usize = 64 << 10;

/// Text as XML character data: markup escaped, characters that XML forbids replaced.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\n' | '\t' => out.push(c),
            '\r' => {}
            c if c < ' ' || c == '\u{fffe}' || c == '\u{ffff}' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

fn tail(text: &str) -> &str {
    let mut from = text.len().saturating_sub(OUTPUT);
    while !text.is_char_boundary(from) {
        from += 1;
    }
    &text[from..]
}

/// All reports as one document.
pub fn report(reports: &[Report]) -> String {
    let failed = reports.iter().filter(|r| r.verdict.failed()).count();
    let skipped = reports.iter().filter(|r| matches!(r.verdict, Verdict::Skip(_))).count();
    let seconds: f64 = reports.iter().map(|r| r.seconds).sum();
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    out.push_str(&format!(
        "<testsuites><testsuite name=\"undervisor\" tests=\"{}\" failures=\"{failed}\" errors=\"0\" skipped=\"{skipped}\" \
         time=\"{seconds:.3}\">\n",
        reports.len()
    ));
    for r in reports {
        out.push_str(&format!("<testcase classname=\"undervisor\" name=\"{}\" time=\"{:.3}\">", escape(&r.name), r.seconds));
        match &r.verdict {
            Verdict::Pass => {}
            Verdict::Skip(why) => out.push_str(&format!("<skipped message=\"{}\"/>", escape(why))),
            Verdict::Fail(why) => {
                out.push_str(&format!("<failure message=\"{}\">{}</failure>", escape(why), escape(&r.failures.join("\n"))));
            }
        }
        out.push_str(&format!("<system-out>{}</system-out></testcase>\n", escape(tail(&r.output))));
    }
    out.push_str("</testsuite></testsuites>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_cannot_break_the_document() {
        let mut r = Report::read("a<b>", "PASS: x & y\u{1b}[0m\n", 1.0);
        r.output = "]]> <&\u{0}".into();
        r.verdict = Verdict::Fail("\"why\"".into());
        let text = report(&[r]);
        assert!(text.contains("name=\"a&lt;b&gt;\"") && text.contains("]]&gt; &lt;&amp;\u{fffd}"), "{text}");
        assert!(text.contains("failures=\"1\""));
    }
}

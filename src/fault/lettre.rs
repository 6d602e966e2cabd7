//! `lettre`: SMTP.
//!
//! A mail server's reply begins with a reply code (RFC 5321), usually followed by an enhanced status code (RFC 3463,
//! section 3) that is more specific. The classes of both have to agree (RFC 2034, section 4).
//!
//! | reply | cause |
//! |---|---|
//! | enhanced x.2.2, mailbox full | `QuotaExceeded` |
//! | enhanced x.3.1, mail system full | `DiskFull` |
//! | 452 without an enhanced code, "insufficient system storage" | `DiskFull` |
//! | 552 without an enhanced code, "exceeded storage allocation" | `QuotaExceeded` |
//!
//! The texts are those of RFC 5321, section 4.2.3. Without them the two replies are ambiguous: 452 also means too
//! many recipients (section 4.5.3.1.10), as 552 used to, and many servers reply 552 to a large message.
//!
//! Not storage: x.3.4 and x.2.3, a message too large; x.5.3, too many recipients; x.7.x, policy. Exchange also
//! replies "Insufficient system resources" under x.3.1 when memory runs out ("Back pressure" in its manual).

use std::error::Error;

use lettre::transport::smtp::Error as SmtpError;

use super::{
    Cause, Fault, Resource, Verdict,
    library::{Library, of_type},
};

pub(super) const LIBRARY: Library = Library {
    look,
    inside: |_| None,
    types: &[of_type::<SmtpError>],
};

fn look(error: &(dyn Error + 'static)) -> Option<Verdict> {
    let error = error.downcast_ref::<SmtpError>()?;
    let reply = u16::from(error.status()?);
    judge(reply, &error.source()?.to_string())
}

fn judge(reply: u16, text: &str) -> Option<Verdict> {
    let lower = text.to_ascii_lowercase();
    let class = (reply / 100).to_string();
    match (enhanced(text), reply) {
        (Some(code), _) => match code.strip_prefix(&class)? {
            ".2.2" => Some(QUOTA_EXCEEDED),
            ".3.1" if !lower.contains("system resources") => Some(DISK_FULL),
            _ => None,
        },
        (None, 452) if lower.contains("insufficient system storage") => Some(DISK_FULL),
        (None, 552) if lower.contains("exceeded storage allocation") => Some(QUOTA_EXCEEDED),
        _ => None,
    }
}

/// The enhanced status code: three numbers of up to three digits.
fn enhanced(text: &str) -> Option<&str> {
    let word = text.split_whitespace().next()?;
    let is_number =
        |part: &str| (1..=3).contains(&part.len()) && part.bytes().all(|b| b.is_ascii_digit());
    (word.split('.').count() == 3 && word.split('.').all(is_number)).then_some(word)
}

const DISK_FULL: Verdict = Verdict::Fault(Fault::DISK_FULL);
const QUOTA_EXCEEDED: Verdict = Verdict::Fault(Fault::new(Cause::QuotaExceeded, Resource::Bytes));

#[cfg(test)]
mod tests {
    use super::*;

    /// The library has no constructor for such an error: see the downstream tests.
    #[test]
    fn the_enhanced_code_decides_and_without_it_the_words_of_the_standard() {
        for (reply, text, verdict) in [
            (452, "4.3.1 Insufficient system storage", Some(DISK_FULL)),
            (552, "5.3.1 Mail system full", Some(DISK_FULL)),
            (
                452,
                "4.2.2 The recipient's inbox is out of storage space",
                Some(QUOTA_EXCEEDED),
            ),
            (552, "5.2.2 Mailbox full", Some(QUOTA_EXCEEDED)),
            (550, "5.2.2 Over quota", Some(QUOTA_EXCEEDED)),
            (
                452,
                "Requested action not taken: insufficient system storage",
                Some(DISK_FULL),
            ),
            (
                552,
                "Requested mail action aborted: exceeded storage allocation",
                Some(QUOTA_EXCEEDED),
            ),
            (452, "4.5.3 Too many recipients", None),
            (452, "Too many recipients", None),
            (
                452,
                "4.3.1 Insufficient system resources (UsedVersionBuckets)",
                None,
            ),
            (552, "5.3.4 Message too big for system", None),
            (552, "5.2.3 Message exceeds the limit", None),
            (552, "Message too large", None),
            (552, "5.7.0 Blocked for its content", None),
            (452, "4.5.3 insufficient system storage", None),
            (421, "4.3.2 Shutting down", None),
            (421, "insufficient system storage", None),
            (550, "5.1.1 User unknown", None),
            (550, "5.7.1 Rejected: 5.2.2", None),
            // The classes do not agree, and one number is too long.
            (452, "5.2.2 Mailbox full", None),
            (550, "5.2.2000 ?", None),
            (452, "", None),
        ] {
            assert_eq!(judge(reply, text), verdict, "{reply} {text}");
        }
    }

    #[test]
    fn only_replies_are_looked_at() {
        let malformed = "xyz"
            .parse::<lettre::transport::smtp::response::Response>()
            .unwrap_err();
        assert_eq!(look(&malformed), None);
        assert_eq!(look(&std::io::Error::other("452 4.3.1")), None);
    }
}

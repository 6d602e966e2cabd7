//! Selects the format that a client prefers: proactive negotiation by `Accept` (RFC 9110, section 12.5.1).

/// The formats of HTTP answers, in this crate's order of preference.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Format {
    Json,
    Problem,
    Plain,
    Html,
}

impl Format {
    const ALL: [Self; 4] = [Self::Json, Self::Problem, Self::Plain, Self::Html];

    pub(super) const fn content_type(self) -> &'static str {
        match self {
            Self::Json => "application/json",
            Self::Problem => "application/problem+json",
            Self::Plain => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        }
    }

    const fn media_type(self) -> MediaType {
        match self {
            Self::Json => ("application", "json"),
            Self::Problem => ("application", "problem+json"),
            Self::Plain => ("text", "plain"),
            Self::Html => ("text", "html"),
        }
    }

    /// The format that the client prefers, by the lines of its `Accept`.
    ///
    /// 1. The range that matches a format most specifically decides its weight: of `text/html`, `text/*` and `*/*`
    ///    the first. Of two equally specific ranges, the one with the greater weight.
    /// 2. The greatest weight wins, then the more specific range, then this crate's order.
    /// 3. If nothing is acceptable, JSON, as without `Accept`. An answer in another format is better than one without
    ///    the reason.
    ///
    /// Parameters other than `q` are ignored. A malformed range is skipped.
    pub(super) fn choose<'a>(accept: impl Iterator<Item = &'a [u8]>) -> Self {
        // For each format, the match of the best range.
        let mut best = [None; Self::ALL.len()];
        for range in ranges(accept) {
            for (best, format) in best.iter_mut().zip(Self::ALL) {
                *best = range.says(format.media_type()).max(*best);
            }
        }
        let acceptable = best
            .into_iter()
            .zip(Self::ALL)
            .filter_map(|(says, format)| Some((rank(says?)?, format)));
        acceptable
            // Of equals, `max_by_key` takes the last.
            .rev()
            .max_by_key(|(rank, _)| *rank)
            .map_or(Self::Json, |(_, format)| format)
    }
}

/// Whether a client prefers XML, by the lines of its `Accept`: it names XML, and gives a lower weight to all formats
/// of HTTP answers. Clients that accept anything list XML among others.
#[cfg(feature = "webdav")]
pub(super) fn likes_xml_best<'a, I>(accept: impl Fn() -> I) -> bool
where
    I: Iterator<Item = &'a [u8]>,
{
    // Called for every request, and few name XML.
    if !accept().any(names_xml) {
        return false;
    }
    let (xml, others) = ranks(accept());
    xml.into_iter().max() > others.into_iter().max()
}

/// Whether a client asks for a format of HTTP answers, by the lines of its `Accept`: it names one that has a greater weight than
/// XML. Most clients accept anything.
#[cfg(feature = "webdav")]
pub(super) fn asks_for_other_than_xml<'a>(accept: impl Iterator<Item = &'a [u8]>) -> bool {
    let (xml, others) = ranks(accept);
    let is_named = |(_, specificity): &Rank| *specificity > 0;
    let other = others.into_iter().flatten().filter(is_named).max();
    other.is_some_and(|other| Some(other) > xml.into_iter().flatten().max())
}

/// The ranks of the media types of XML, and of the formats of HTTP answers.
#[cfg(feature = "webdav")]
fn ranks<'a>(
    accept: impl Iterator<Item = &'a [u8]>,
) -> ([Option<Rank>; 2], [Option<Rank>; Format::ALL.len()]) {
    const XML: [MediaType; 2] = [("application", "xml"), ("text", "xml")];

    let mut xml = [None; XML.len()];
    let mut others = [None; Format::ALL.len()];
    for range in ranges(accept) {
        let types = XML.into_iter().chain(Format::ALL.map(Format::media_type));
        for (best, media_type) in xml.iter_mut().chain(&mut others).zip(types) {
            *best = range.says(media_type).max(*best);
        }
    }
    (xml.map(|says| rank(says?)), others.map(|says| rank(says?)))
}

/// Whether it contains `/xml`.
#[cfg(feature = "webdav")]
fn names_xml(line: &[u8]) -> bool {
    let mut subtypes = line.split(|&byte| byte == b'/').skip(1);
    subtypes.any(|subtype| {
        let name = subtype.get(..3);
        name.is_some_and(|name| name.eq_ignore_ascii_case(b"xml"))
    })
}

/// Type and subtype.
type MediaType = (&'static str, &'static str);

/// How a range matches a media type: its specificity, and the weight.
type Says = (u8, u16);

/// A weight, and the specificity of the range that it is from.
type Rank = (u16, u8);

/// The weight from the best range's match. None if the type is not acceptable.
fn rank((specificity, weight): Says) -> Option<Rank> {
    (weight > 0).then_some((weight, specificity))
}

fn ranges<'a>(accept: impl Iterator<Item = &'a [u8]>) -> impl Iterator<Item = Range<'a>> {
    accept
        .flat_map(|line| split(line, b','))
        .filter_map(Range::parse)
}

/// One media range: `type/subtype`, `type/*` or `*/*`, and its weight.
struct Range<'a> {
    kind: &'a [u8],
    subtype: &'a [u8],
    /// In thousandths.
    weight: u16,
}

impl<'a> Range<'a> {
    fn parse(range: &'a [u8]) -> Option<Self> {
        let mut parts = split(range, b';').map(<[u8]>::trim_ascii);
        let name = parts.next()?;
        let slash = name.iter().position(|&byte| byte == b'/')?;
        let (kind, subtype) = (&name[..slash], &name[slash + 1..]);
        if !is_token(kind) || !is_token(subtype) || (kind == b"*" && subtype != b"*") {
            return None;
        }
        let q = parts.find_map(|parameter| match parameter {
            [b'q' | b'Q', b'=', value @ ..] => Some(value),
            _ => None,
        });
        let weight = q.map_or(Some(1000), weight)?;
        Some(Self {
            kind,
            subtype,
            weight,
        })
    }

    /// None if the range does not match this media type.
    fn says(&self, (kind, subtype): MediaType) -> Option<Says> {
        let specificity = match (self.kind, self.subtype) {
            (b"*", _) => 0,
            (range, _) if !range.eq_ignore_ascii_case(kind.as_bytes()) => return None,
            (_, b"*") => 1,
            (_, range) if range.eq_ignore_ascii_case(subtype.as_bytes()) => 2,
            _ => return None,
        };
        Some((specificity, self.weight))
    }
}

/// A weight in thousandths: `0` or `1`, with up to three decimals (RFC 9110, section 12.4.2).
fn weight(q: &[u8]) -> Option<u16> {
    let (whole, decimals) = match q {
        [whole] => (whole, &[][..]),
        [whole, b'.', decimals @ ..] if decimals.len() <= 3 => (whole, decimals),
        _ => return None,
    };
    if !matches!(whole, b'0' | b'1') || !decimals.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = decimals.iter().chain(b"000").take(3);
    let weight = digits.fold(u16::from(whole - b'0'), |sum, digit| {
        sum * 10 + u16::from(digit - b'0')
    });
    (weight <= 1000).then_some(weight)
}

/// Cuts `text` at each `separator` that is not in a quoted string (RFC 9110, section 5.6.4).
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    text.split(move |&byte| {
        if escaped {
            escaped = false;
            return false;
        }
        match byte {
            b'"' => quoted = !quoted,
            b'\\' => escaped = quoted,
            _ => return byte == separator && !quoted,
        }
        false
    })
}

/// RFC 9110, section 5.6.2.
fn is_token(text: &[u8]) -> bool {
    let is_tchar = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    !text.is_empty() && text.iter().all(is_tchar)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Format::*, *};

    fn choose(lines: &[&str]) -> Format {
        Format::choose(lines.iter().map(|line| line.as_bytes()))
    }

    #[test]
    fn what_real_clients_send() {
        for (accept, format) in [
            // curl, wget, fetch
            ("*/*", Json),
            // axios
            ("application/json, text/plain, */*", Json),
            // Firefox, Chrome
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                Html,
            ),
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8,\
                 application/signed-exchange;v=b3;q=0.7",
                Html,
            ),
            // Java's HttpURLConnection: `*` is no range
            ("text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2", Html),
            // an image in a page
            (
                "image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5",
                Json,
            ),
            ("application/problem+json", Problem),
            ("application/problem+json, application/json;q=0.9", Problem),
            ("application/json;q=0.9, application/problem+json", Problem),
        ] {
            assert_eq!(choose(&[accept]), format, "{accept}");
        }
    }

    #[test]
    fn nothing_asked_or_nothing_acceptable_is_json() {
        assert_eq!(choose(&[]), Json);
        for accept in [
            "",
            ",, ,",
            "image/png",
            "application/xml",
            "*/*;q=0",
            "application/json;q=0",
        ] {
            assert_eq!(choose(&[accept]), Json, "{accept}");
        }
    }

    #[test]
    fn the_most_specific_range_decides_the_weight() {
        for (accept, format) in [
            ("*/*, application/json;q=0.1", Problem),
            ("application/*;q=0.2, text/*;q=0.3", Plain),
            ("text/*, text/plain;q=0.5", Html),
            (
                "text/html;q=0.5, text/html;level=1;q=0.4, text/plain;q=0.45",
                Html,
            ),
            ("text/*;q=0.5, */*;q=0.5", Plain),
            ("*/*, text/html", Html),
            ("*/*;q=0.9, text/*;q=0.8", Json),
        ] {
            assert_eq!(choose(&[accept]), format, "{accept}");
        }
    }

    #[test]
    fn a_weight_of_zero_excludes() {
        for (accept, format) in [
            ("*/*, application/json;q=0", Problem),
            ("*/*, application/*;q=0", Plain),
            ("*/*, application/*;q=0.000, text/plain;q=0", Html),
            ("text/html;q=0, */*;q=0.1", Json),
        ] {
            assert_eq!(choose(&[accept]), format, "{accept}");
        }
    }

    #[test]
    fn several_lines_are_one_list() {
        assert_eq!(choose(&["text/plain;q=0.5", "text/html"]), Html);
        assert_eq!(choose(&["text/html;q=0.5", "text/plain"]), Plain);
        assert_eq!(choose(&["", "garbage", "text/html"]), Html);
    }

    #[test]
    fn only_malformed_ranges_are_skipped() {
        for bad in [
            "text",
            "/",
            "text/",
            "/html",
            "*/html",
            "text/h tml",
            "text/html;q=",
            "text/html;q=2",
            "text/html;q=1.001",
            "text/html;q=0.1234",
            "text/html;q=-1",
            "text/html;q=a",
            "text/html;q=.5",
            "tëxt/html",
            "text/html/x",
        ] {
            assert_eq!(choose(&[bad]), Json, "{bad}");
            assert_eq!(
                choose(&[&format!("{bad}, text/plain;q=0.1")]),
                Plain,
                "{bad}"
            );
        }
    }

    #[test]
    fn spelling_is_free() {
        for good in [
            "TEXT/HTML",
            "text/html;q=1",
            "text/html;q=1.",
            "text/html;q=1.000",
            "text/html ; Q=0.001",
            "\ttext/html\t;\tq=0.5 ",
            "text/html;charset=utf-8",
            "text/html;;q=0.3",
            "text/html;x=\"a,b;q=0\";q=0.5",
            "text/html;x=\"\\\",text/plain,\"",
        ] {
            assert_eq!(choose(&[good]), Html, "{good}");
        }
    }

    #[cfg(feature = "webdav")]
    #[test]
    fn xml_must_be_preferred_to_every_format_of_http() {
        for (accept, is_best) in [
            ("application/xml", true),
            ("text/xml", true),
            ("TEXT/XML;charset=utf-8", true),
            ("application/xml, */*", true),
            ("text/xml, text/*;q=0.5, */*;q=0.1", true),
            ("application/json;q=0.9, text/xml", true),
            ("image/png, text/xml;q=0.2", true),
            // Safari 3
            (
                "text/xml,application/xml,application/xhtml+xml,text/html;q=0.9,text/plain;q=0.8,image/png,*/*;q=0.5",
                true,
            ),
            // Firefox, Chrome
            (
                "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
                false,
            ),
            // RestSharp, which takes anything
            (
                "application/json, text/json, text/x-json, text/javascript, application/xml, text/xml",
                false,
            ),
            ("application/xml, application/json", false),
            ("application/xml;q=0.9, application/json", false),
            ("application/xml;q=0.9, */*", false),
            ("application/xml;q=0", false),
            ("application/json, text/plain, */*", false),
            ("application/*", false),
            (
                "application/*, application/json;q=0, application/problem+json;q=0",
                false,
            ),
            ("*/*", false),
            ("application/soap+xml", false),
            ("xml", false),
            ("", false),
        ] {
            let lines = [accept.as_bytes()];
            assert_eq!(likes_xml_best(|| lines.into_iter()), is_best, "{accept}");
        }
        let lines =
            |lines: &[&'static str]| likes_xml_best(|| lines.iter().map(|line| line.as_bytes()));
        assert!(!lines(&[]));
        assert!(lines(&["text/plain;q=0.5", "text/xml"]));
        assert!(!lines(&["text/xml", "text/plain"]));
    }

    #[test]
    fn weights() {
        for (q, thousandths) in [
            ("0", Some(0)),
            ("0.", Some(0)),
            ("0.5", Some(500)),
            ("0.05", Some(50)),
            ("0.123", Some(123)),
            ("1", Some(1000)),
            ("1.000", Some(1000)),
            ("1.001", None),
            ("0.1234", None),
            ("2", None),
            ("", None),
            ("00", None),
            ("0,5", None),
        ] {
            assert_eq!(weight(q.as_bytes()), thousandths, "{q}");
        }
    }

    /// The reference model: the weight that the ranges give a media type.
    fn weight_of((kind, subtype): MediaType, ranges: &[(&str, u16)]) -> u16 {
        [
            format!("{kind}/{subtype}"),
            format!("{kind}/*"),
            "*/*".to_owned(),
        ]
        .iter()
        .find_map(|name| {
            ranges
                .iter()
                .filter(|(range, _)| range == name)
                .map(|(_, weight)| *weight)
                .max()
        })
        .unwrap_or(0)
    }

    fn ranges() -> impl Strategy<Value = Vec<(&'static str, u16)>> {
        let names = prop::sample::select(vec![
            "application/json",
            "application/problem+json",
            "application/*",
            "text/plain",
            "text/html",
            "text/xml",
            "application/xml",
            "text/*",
            "*/*",
            "image/png",
        ]);
        prop::collection::vec((names, prop_oneof![Just(0), 0..=1000u16]), 0..8)
    }

    proptest! {
        #[test]
        fn any_bytes_end_in_one_of_ours(lines in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..4)) {
            let format = Format::choose(lines.iter().map(Vec::as_slice));
            prop_assert!(Format::ALL.contains(&format));
        }

        #[test]
        fn likely_bytes_end_in_one_of_ours(line in r#"([a-z*/;=q01.," \\]|text|html|json|application){0,24}"#) {
            prop_assert!(Format::ALL.contains(&choose(&[&line])));
        }

        #[test]
        fn the_heaviest_is_chosen_and_the_excluded_never(ranges in ranges(), in_one_line: bool) {
            let lines: Vec<_> = ranges
                .iter()
                .map(|(name, weight)| format!("{name};q={}.{:03}", weight / 1000, weight % 1000))
                .collect();
            let chosen = if in_one_line {
                choose(&[&lines.join(", ")])
            } else {
                Format::choose(lines.iter().map(|line| line.as_bytes()))
            };
            let heaviest = Format::ALL.map(|format| weight_of(format.media_type(), &ranges)).into_iter().max();
            if heaviest == Some(0) {
                prop_assert_eq!(chosen, Json);
            } else {
                prop_assert_eq!(Some(weight_of(chosen.media_type(), &ranges)), heaviest);
            }

            // Of equal weights the more specific range decides: other tests check that.
            #[cfg(feature = "webdav")]
            {
                let xml = [("application", "xml"), ("text", "xml")].map(|xml| weight_of(xml, &ranges)).into_iter().max();
                let is_named = ranges.iter().any(|(name, _)| name.ends_with("/xml"));
                if xml != heaviest {
                    let is_best = likes_xml_best(|| lines.iter().map(|line| line.as_bytes()));
                    prop_assert_eq!(is_best, is_named && xml > heaviest);
                }
            }
        }
    }
}

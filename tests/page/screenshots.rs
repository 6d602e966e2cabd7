//! The pictures that README shows.

use std::{
    collections::HashMap,
    env, fs,
    io::Cursor,
    iter::repeat_n,
    path::{Path, PathBuf},
};

use png::{BitDepth, ColorType, Compression, Decoder, Encoder, Transformations};
use test_support::mounts::{in_runtime, with_own_mounts};

use crate::{looks::scene, visit::MIB};

/// The folder that they are written to, which `make screenshots` sets. Otherwise they are made all the same, and thrown away.
const FOLDER: &str = "STORAGE_GUARD_SCREENSHOTS";
/// The name, the colour scheme, and the width in CSS pixels.
const PICTURES: [(&str, &str, u32); 4] = [
    ("light", "light", 820),
    ("dark", "dark", 820),
    ("phone-light", "light", 360),
    ("phone-dark", "dark", 360),
];

#[test]
#[ignore = "needs chromium, and mounts a filesystem: run by `make test`"]
fn the_screenshots_can_be_made() {
    with_own_mounts(|| {
        in_runtime(async {
            let thrown_away = tempfile::tempdir().unwrap();
            let folder = env::var_os(FOLDER).map_or(thrown_away.path().to_owned(), PathBuf::from);
            fs::create_dir_all(&folder).unwrap();
            let visit = scene().await;
            let browser = &visit.browser;
            visit.wire.pace(3 * MIB);
            let state = "document.querySelector('#queue .state').textContent";
            browser
                .until(&format!("/, [1-4]\\.\\d MiB\\/s/.test({state})"))
                .await;
            let mut pictures = Vec::new();
            for (name, scheme, width) in PICTURES {
                browser.color_scheme(scheme).await;
                browser.resize(width, 900).await;
                let height = browser
                    .value("document.querySelector('main').offsetHeight")
                    .await;
                browser
                    .resize(width, height.as_u64().unwrap().try_into().unwrap())
                    .await;
                pictures.push((name, browser.screenshot().await));
            }
            // Still under way, as the pictures show it.
            assert_eq!(
                browser
                    .value("document.querySelectorAll('[data-state=sending]').length")
                    .await,
                1
            );
            for (name, picture) in pictures {
                let path = folder.join(name).with_extension("png");
                Picture::read(&picture).write(&path);
            }
        });
    });
}

/// A picture without transparency.
struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<[u8; 3]>,
}

impl Picture {
    fn read(png: &[u8]) -> Self {
        let mut decoder = Decoder::new(Cursor::new(png));
        decoder.set_transformations(Transformations::EXPAND);
        let mut reader = decoder.read_info().unwrap();
        let mut buffer = vec![0; reader.output_buffer_size().unwrap()];
        let info = reader.next_frame(&mut buffer).unwrap();
        let size = info.color_type.samples();
        assert!(size >= 3, "{info:?}");
        let pixels = buffer
            .chunks_exact(size)
            .map(|pixel| [pixel[0], pixel[1], pixel[2]]);
        Self {
            width: info.width,
            height: info.height,
            pixels: pixels.collect(),
        }
    }

    /// Writes it with the 256 most frequent colours, in half of the bytes. The others are at the edges of letters: each becomes the
    /// most similar one.
    fn write(&self, path: &Path) {
        let runs = || self.pixels.chunk_by(|one, other| one == other);
        let mut counts = HashMap::new();
        for run in runs() {
            *counts.entry(run[0]).or_insert(0) += run.len();
        }
        let mut colors: Vec<_> = counts.keys().copied().collect();
        assert!(colors.len() > 20, "{path:?} is empty");
        colors.sort_by_key(|color| (usize::MAX - counts[color], *color));
        let kept = &colors[..colors.len().min(256)];
        let distance = |one: [u8; 3], other: [u8; 3]| -> u32 {
            let parts = one.iter().zip(other);
            parts.map(|(a, b)| u32::from(a.abs_diff(b)).pow(2)).sum()
        };
        let nearest = |color: [u8; 3]| {
            let kept = (0_u8..=255).zip(kept);
            kept.min_by_key(|(_, other)| distance(color, **other))
                .unwrap()
                .0
        };
        let indexes: HashMap<_, _> = colors
            .iter()
            .map(|color| (*color, nearest(*color)))
            .collect();
        let pixels: Vec<_> = runs()
            .flat_map(|run| repeat_n(indexes[&run[0]], run.len()))
            .collect();

        let mut out = Vec::new();
        let mut encoder = Encoder::new(&mut out, self.width, self.height);
        encoder.set_color(ColorType::Indexed);
        encoder.set_depth(BitDepth::Eight);
        encoder.set_palette(kept.concat());
        encoder.set_compression(Compression::High);
        encoder
            .write_header()
            .unwrap()
            .write_image_data(&pixels)
            .unwrap();
        assert!(out.len() < 100 << 10, "{path:?} has {} bytes", out.len());
        fs::write(path, out).unwrap();
    }
}

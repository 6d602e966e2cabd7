//! Lists the imports to be removed: all imports of the crate that do not go down, by pairs of modules, and its cycles
//! with the cheapest cut of each.
//!
//! ```sh
//! cargo run -p test-arrows --example report > report.txt
//! ```

use std::collections::{BTreeMap, BTreeSet};

use test_arrows::{Arrow, Crate, EXCEPTIONS, LAYERS, Order, Rule, cycles};

/// The number of places that are printed for a pair.
const SHOWN: usize = 4;
/// Up to this number of modules, every subset is tried, which takes a second.
const EXACT: usize = 20;

type Pair<'a> = (&'a str, &'a str);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let source = Crate::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))?;
    let order = Order {
        layers: LAYERS,
        exceptions: EXCEPTIONS,
    };
    let report = source.check(&order);
    let of = |rules: &[Rule]| -> Vec<&Arrow> {
        let found = report.violations.iter();
        let found = found.filter(|violation| rules.contains(&violation.rule));
        found.map(|violation| &violation.arrow).collect()
    };

    let upward = of(&[Rule::Upward, Rule::Sideways]);
    print_pairs("TO BE CUT: imports of a higher or the same layer", &upward);
    print_pairs("NAMES THROUGH THE CRATE ROOT", &of(&[Rule::ThroughRoot]));
    let in_folders = of(&[Rule::FolderCycle]);
    print_pairs("CYCLES IN A FOLDER", &in_folders);
    for violation in &report.violations {
        if !matches!(
            violation.rule,
            Rule::Upward | Rule::Sideways | Rule::ThroughRoot | Rule::FolderCycle
        ) {
            println!("{violation}");
        }
    }

    let plain = source.check(&Order::default());
    print_cycles(
        "CYCLES OF TOP-LEVEL MODULES",
        &plain.arrows.iter().collect::<Vec<_>>(),
    );
    print_cycles(
        "CYCLES OF THE ROOMS IN layers.rs",
        &report.arrows.iter().collect::<Vec<_>>(),
    );
    print_cycles("CYCLES OF FILES", &in_folders);

    println!("\n# ALLOWED\n");
    let cut: BTreeSet<_> = upward.into_iter().collect();
    let allowed = report.arrows.iter().filter(|arrow| !cut.contains(arrow));
    for ((from, to), places) in by_pairs(&allowed.collect::<Vec<_>>()) {
        println!("{from} -> {to}: {}", places.len());
    }
    Ok(())
}

fn by_pairs<'a>(arrows: &[&'a Arrow]) -> BTreeMap<Pair<'a>, Vec<&'a Arrow>> {
    let mut pairs: BTreeMap<Pair<'_>, Vec<_>> = BTreeMap::new();
    for &arrow in arrows {
        let pair = (arrow.from.as_str(), arrow.to.as_str());
        pairs.entry(pair).or_default().push(arrow);
    }
    pairs
}

fn print_pairs(title: &str, arrows: &[&Arrow]) {
    let pairs = by_pairs(arrows);
    println!(
        "\n# {title}: {} places, {} pairs\n",
        arrows.len(),
        pairs.len()
    );
    for ((from, to), places) in pairs {
        println!("{from} -> {to}: {}", places.len());
        for place in places.iter().take(SHOWN) {
            println!("    {}:{} {}", place.file.display(), place.line, place.path);
        }
    }
}

fn print_cycles(title: &str, arrows: &[&Arrow]) {
    let pairs = by_pairs(arrows);
    println!("\n# {title}\n");
    for cycle in cycles(&pairs.keys().copied().collect()) {
        let count = |from, to| pairs.get(&(from, to)).map_or(0, Vec::len);
        let order = cheapest(&cycle, &count);
        println!(
            "{} modules; the cheapest order, bottom to top: {}",
            cycle.len(),
            order.join(" < ")
        );
        let cut = upward(&order, &count);
        let total: usize = cut.iter().map(|(_, count)| count).sum();
        println!("its cut, {total} places:");
        for ((from, to), count) in cut {
            let first = pairs[&(from, to)].iter().take(SHOWN);
            let first: Vec<_> = first.map(|arrow| arrow.path.as_str()).collect();
            println!("    {from} -> {to}: {count} ({})", first.join(", "));
        }
    }
}

/// The pairs that violate `order`, with the number of places of each.
fn upward<'a>(
    order: &[&'a str],
    count: &impl Fn(&'a str, &'a str) -> usize,
) -> Vec<(Pair<'a>, usize)> {
    let mut cut = Vec::new();
    for (at, from) in order.iter().enumerate() {
        for to in &order[at + 1..] {
            match count(from, to) {
                0 => {}
                count => cut.push(((*from, *to), count)),
            }
        }
    }
    cut
}

/// The order, from bottom to top, with the fewest violating places.
fn cheapest<'a>(nodes: &[&'a str], count: &impl Fn(&'a str, &'a str) -> usize) -> Vec<&'a str> {
    if nodes.len() > EXACT {
        return improved(nodes.to_vec(), count);
    }
    // For each set of nodes at the bottom: the minimal number of violations, and which node of the set is on top.
    let mut best = vec![(usize::MAX, 0); 1 << nodes.len()];
    best[0].0 = 0;
    for below in 0..best.len() {
        for (top, node) in nodes.iter().enumerate() {
            if below & 1 << top != 0 {
                continue;
            }
            let under = nodes
                .iter()
                .enumerate()
                .filter(|(at, _)| below & 1 << at != 0);
            let against: usize = under.map(|(_, from)| count(from, node)).sum();
            let total = best[below].0 + against;
            let with = &mut best[below | 1 << top];
            if total < with.0 {
                *with = (total, top);
            }
        }
    }
    let mut order = Vec::new();
    let mut rest = best.len() - 1;
    while rest != 0 {
        let top = best[rest].1;
        order.push(nodes[top]);
        rest &= !(1 << top);
    }
    order.reverse();
    order
}

/// An order that no move of one node improves.
fn improved<'a>(
    mut order: Vec<&'a str>,
    count: &impl Fn(&'a str, &'a str) -> usize,
) -> Vec<&'a str> {
    let cost = |order: &[&'a str]| -> usize { upward(order, count).iter().map(|(_, n)| n).sum() };
    loop {
        let before = cost(&order);
        for at in 0..order.len() {
            let mut rest = order.clone();
            let node = rest.remove(at);
            let moved = (0..=rest.len()).map(|to| {
                let mut moved = rest.clone();
                moved.insert(to, node);
                moved
            });
            if let Some(better) = moved
                .min_by_key(|moved| cost(moved))
                .filter(|it| cost(it) < cost(&order))
            {
                order = better;
            }
        }
        if cost(&order) == before {
            return order;
        }
    }
}

//! Groups of nodes that reach each other.

use std::collections::{BTreeMap, BTreeSet};

/// The strongly connected components of more than one node, sorted.
pub fn cycles<T: Clone + Ord>(edges: &BTreeSet<(T, T)>) -> Vec<Vec<T>> {
    let mut next: BTreeMap<&T, Vec<&T>> = BTreeMap::new();
    for (from, to) in edges {
        next.entry(from).or_default().push(to);
    }
    let reached: BTreeMap<&T, BTreeSet<&T>> = next
        .keys()
        .map(|&node| (node, reachable(node, &next)))
        .collect();
    let reaches = |from, to| reached.get(from).is_some_and(|nodes| nodes.contains(to));
    let mut cycles: Vec<Vec<T>> = Vec::new();
    for &node in reached.keys() {
        if cycles.iter().any(|cycle| cycle.contains(node)) {
            continue;
        }
        let cycle: Vec<T> = reached
            .keys()
            .filter(|&&other| other == node || reaches(node, other) && reaches(other, node))
            .map(|&other| other.clone())
            .collect();
        if cycle.len() > 1 {
            cycles.push(cycle);
        }
    }
    cycles
}

/// What can be reached from `node` by at least one edge.
fn reachable<'a, T: Ord>(node: &'a T, next: &BTreeMap<&'a T, Vec<&'a T>>) -> BTreeSet<&'a T> {
    let mut reached = BTreeSet::new();
    let mut open = vec![node];
    while let Some(node) = open.pop() {
        for &to in next.get(node).into_iter().flatten() {
            if reached.insert(to) {
                open.push(to);
            }
        }
    }
    reached
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separate_cycles_stay_separate() {
        let edges = ["ab", "bc", "ca", "cd", "de", "ed", "ef", "gg"]
            .map(|edge| (edge[..1].to_owned(), edge[1..].to_owned()));
        assert_eq!(cycles(&edges.into()), [vec!["a", "b", "c"], vec!["d", "e"]]);
    }
}

//! What happens next: a queue by virtual time; what is due at one time happens in the order of scheduling.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The queue.
#[derive(Debug)]
pub struct Agenda<T> {
    /// Due time, running number, place in `items`.
    heap: BinaryHeap<Reverse<(u64, u64, u32)>>,
    items: Vec<Option<T>>,
    free: Vec<u32>,
    next_number: u64,
}

impl<T> Default for Agenda<T> {
    fn default() -> Self {
        Self {
            heap: BinaryHeap::new(),
            items: Vec::new(),
            free: Vec::new(),
            next_number: 0,
        }
    }
}

impl<T> Agenda<T> {
    /// `item` happens at `at_us`.
    pub fn schedule(&mut self, at_us: u64, item: T) {
        let place = match self.free.pop() {
            Some(place) => {
                self.items[place as usize] = Some(item);
                place
            }
            None => {
                self.items.push(Some(item));
                u32::try_from(self.items.len() - 1).expect("an agenda is short")
            }
        };
        self.heap.push(Reverse((at_us, self.next_number, place)));
        self.next_number += 1;
    }

    /// The next thing and when it happens.
    pub fn pop(&mut self) -> Option<(u64, T)> {
        let Reverse((at_us, _, place)) = self.heap.pop()?;
        self.free.push(place);
        let item = self.items[place as usize].take();
        Some((at_us, item.expect("a place is taken once")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn things_happen_by_time_and_then_in_the_order_of_scheduling() {
        let mut agenda = Agenda::default();
        for (at, item) in [(5, 'c'), (1, 'a'), (5, 'd'), (2, 'b')] {
            agenda.schedule(at, item);
        }
        let first: Vec<(u64, char)> = std::iter::from_fn(|| agenda.pop()).take(2).collect();
        agenda.schedule(5, 'e');
        let rest: Vec<(u64, char)> = std::iter::from_fn(|| agenda.pop()).collect();
        assert_eq!(first, [(1, 'a'), (2, 'b')]);
        assert_eq!(rest, [(5, 'c'), (5, 'd'), (5, 'e')]);
    }
}

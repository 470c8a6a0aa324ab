//! Where scratch lives: buffers whose lifetimes do not overlap share memory.
//!
//! A whole buffer is the unit in which WebGPU tracks use, so sharing is by whole buffers too: each
//! scratch buffer is given a slot, and a slot is as large as its largest tenant.

use super::{BufferId, MOST_ELEMENTS, Plan, Role};
use crate::kernel::Element;

/// The memory of a plan's scratch buffers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Elements of each slot.
    pub slots: Vec<Slot>,
    /// Which slot a buffer has; `None` for all but scratch.
    pub slot_of: Vec<Option<usize>>,
}

/// Memory that some scratch buffers share one after another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// What it holds.
    pub element: Element,
    /// How many elements.
    pub len: usize,
}

impl Plan {
    /// Gives every scratch buffer a slot: first fit in the order of first use.
    pub fn layout(&self) -> Layout {
        let mut life = vec![None::<(usize, usize)>; self.buffers.len()];
        for (at, step) in self.steps.iter().enumerate() {
            for id in &step.bindings {
                let (first, _) = life[id.0].unwrap_or((at, at));
                life[id.0] = Some((first, at));
            }
        }
        let mut scratch: Vec<(BufferId, usize, usize)> = life
            .iter()
            .enumerate()
            .filter(|(i, _)| self.buffers[*i].role == Role::Scratch)
            .filter_map(|(i, l)| l.map(|(first, last)| (BufferId(i, self.id), first, last)))
            .collect();
        scratch.sort_by_key(|&(id, first, _)| (first, id));

        let mut slots: Vec<Slot> = Vec::new();
        let mut free_after: Vec<usize> = Vec::new();
        let mut slot_of = vec![None; self.buffers.len()];
        for (id, first, last) in scratch {
            let buffer = &self.buffers[id.0];
            let found = (0..slots.len())
                .find(|&s| free_after[s] < first && slots[s].element == buffer.element);
            let slot = found.unwrap_or_else(|| {
                slots.push(Slot {
                    element: buffer.element,
                    len: 0,
                });
                free_after.push(0);
                slots.len() - 1
            });
            slots[slot].len = slots[slot].len.max(buffer.len());
            free_after[slot] = last;
            slot_of[id.0] = Some(slot);
        }
        Layout { slots, slot_of }
    }

    /// Bytes of GPU memory that buffers of a role take; scratch counts its shared slots.
    pub fn bytes(&self, role: Role) -> u64 {
        let sum = |sum: u64, bytes: usize| sum.saturating_add(bytes as u64);
        if role == Role::Scratch {
            let slots = self.layout().slots;
            let bytes = slots
                .iter()
                .map(|s| s.element.bytes(s.len.min(MOST_ELEMENTS)));
            bytes.fold(0, sum)
        } else {
            let of_role = self.buffers.iter().filter(|b| b.role == role);
            of_role.map(super::Buffer::bytes).fold(0, sum)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::copy::copy;
    use crate::plan::Builder;

    #[test]
    fn lifetimes_that_do_not_overlap_share() {
        let mut b = Builder::new("p");
        let x = b.float("x", &[8], Role::Input);
        let s = [8, 4, 6].map(|n| b.float("s", &[n], Role::Scratch));
        let y = b.float("y", &[4], Role::Output);
        copy(&mut b, (x, 0), (s[0], 0), 8).unwrap();
        copy(&mut b, (s[0], 0), (s[1], 0), 4).unwrap();
        copy(&mut b, (s[1], 0), (s[2], 0), 4).unwrap();
        copy(&mut b, (s[2], 0), (y, 0), 4).unwrap();
        let plan = b.finish();
        let layout = plan.layout();
        // s0 and s1 meet in the second step, s1 and s2 in the third.
        assert_ne!(layout.slot_of[s[0].0], layout.slot_of[s[1].0]);
        assert_ne!(layout.slot_of[s[1].0], layout.slot_of[s[2].0]);
        assert_eq!(layout.slot_of[s[0].0], layout.slot_of[s[2].0]);
        assert_eq!(plan.bytes(Role::Scratch), 4 * (8 + 4));
        assert_eq!(plan.barriers(0..4).unwrap(), 3);
    }
}

// One index per invocation in a grid that may be folded over x and y, since a
// dispatch has at most 65,535 workgroups per dimension.

fn flat_index(group: vec3u, groups: vec3u, local: u32, size: u32) -> u32 {
    return (group.y * groups.x + group.x) * size + local;
}

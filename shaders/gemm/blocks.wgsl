// A product in registers alone, without workgroup memory and barriers: for adapters
// that run shaders on a CPU, where a barrier costs more than reading twice.
//
// An invocation owns ROWS x COLS blocks of 4 x 4 of C. A workgroup has `width` of them
// along the columns and 8 / width along the rows. No branch stands in the main loop,
// since these adapters would follow both of its ways.
#import gemm

const WORKGROUP: u32 = 8u;
const ROWS: u32 = 2u;
const COLS: u32 = 2u;

@compute @workgroup_size(WORKGROUP)
fn blocks(
    @builtin(workgroup_id) group: vec3u,
    @builtin(local_invocation_index) local: u32,
) {
    let width = product.width;
    let row = (group.y * (WORKGROUP / width) + local / width) * (4u * ROWS);
    let col = (group.x * width + local % width) * (4u * COLS);
    let end = end_of(group.z);

#unroll u ROWS
#unroll v COLS
#unroll i 4
    var c{u}{i}{v} = vec4f();
#end
#end
#end
    var k = group.z * product.chunk;
    for (; k + 4u <= end; k += 4u) {
#unroll u ROWS
        let a{u} = a_block(row + {u}u * 4u, k);
#end
#unroll v COLS
        let b{v} = b_block(k, col + {v}u * 4u);
#end
#unroll q 4
#unroll u ROWS
#unroll v COLS
#unroll i 4
        c{u}{i}{v} += a{u}[{q}][{i}] * b{v}[{q}];
#end
#end
#end
#end
    }
#if REST
    for (; k < end; k++) {
#unroll u ROWS
        let a{u} = a_rows(row + {u}u * 4u, k);
#end
#unroll v COLS
        let b{v} = b_cols(k, col + {v}u * 4u);
#end
#unroll u ROWS
#unroll v COLS
#unroll i 4
        c{u}{i}{v} += a{u}[{i}] * b{v};
#end
#end
#end
    }
#end
#unroll u ROWS
#unroll v COLS
#unroll i 4
    store(row + {u}u * 4u + {i}u, col + {v}u * 4u, group.z, c{u}{i}{v});
#end
#end
#end
}

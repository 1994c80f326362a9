// SPDX-License-Identifier: GPL-2.0-only
/* Let everything pass. A veth end hands frames that its peer transmits from XDP on to the stack
 * only if it has an XDP program itself (drivers/net/veth.c: its receive ring is polled by NAPI).
 */
#include "bpf.h"

SEC("xdp") int midstream_pass(struct xdp_md *ctx __attribute__((unused)))
{
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

// SPDX-License-Identifier: GPL-2.0-only
/* The floor of every benchmark: send marked packets on to the logger, and do nothing else.
 *
 * It stores nothing, knows no connection and verifies no checksum. No receiver can cost less, because this is
 * what it takes to get a packet into the machine and out again.
 */
#include "bpf.h"
#include "const.h"
#include "marked.h"
#include "packet.h"

SEC("xdp") int midstream_floor(struct xdp_md *ctx)
{
	struct headers *h = (void *)(long)ctx->data;

	if ((void *)(h + 1) > (void *)(long)ctx->data_end || h->eth.h_proto != bswap16(ETH_P_IP) ||
	    h->ip.daddr != bswap32(HARDWORKER_IP) || h->ip.protocol != IPPROTO_TCP || !is_marked(h->ip.tos) ||
	    IP_VERSION_LENGTH(&h->ip) != IP_VERSION_4_NO_OPTIONS || h->tcp.dest != bswap16(MARK_PORT))
		return XDP_PASS;
	return forward(h);
}

char _license[] SEC("license") = "GPL";

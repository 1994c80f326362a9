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
	const struct tcphdr *tcp = tcp_header(h);
	const struct iphdr *ip = ip_header(h);

	if ((void *)(h + 1) > (void *)(long)ctx->data_end || ETHER_TYPE(&h->eth) != bswap16(ETH_P_IP) ||
	    ip->daddr != bswap32(HARDWORKER_IP) || ip->protocol != IPPROTO_TCP || !is_marked(ip->tos) ||
	    IP_VERSION_LENGTH(ip) != IP_VERSION_4_NO_OPTIONS || tcp->dest != bswap16(MARK_PORT))
		return XDP_PASS;
	return forward(h, 0);
}

char _license[] SEC("license") = "GPL";

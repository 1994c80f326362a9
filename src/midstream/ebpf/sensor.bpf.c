// SPDX-License-Identifier: GPL-2.0-only
/* The sensor, where a switch lets no foreign source address pass: replies arrive with a logger's
 * own address, and get the hardworker's here, before the sensor's TCP sees them.
 *
 * Which replies: those for which this host has a socket connected to the hardworker, and none
 * connected directly to that logger. One that only lingers in TIME_WAIT gives way to one that is
 * connected. The socket table is asked each time, so nothing is remembered.
 */
#include "bpf.h"
#include "const.h"
#include "packet.h"
#include "ports.h"
#include "settings.h"

/* The state of this host's socket towards a peer; 0 if there is none, or one that only listens. */
static __always_inline __u32 socket_state(struct xdp_md *ctx, const struct headers *h, __be32 peer)
{
	const struct tcphdr *tcp = tcp_header(h);
	struct bpf_sock_tuple tuple = {
		.ipv4 = {.saddr = peer, .sport = tcp->source, .daddr = ip_header(h)->daddr, .dport = tcp->dest},
	};
	struct bpf_sock *sock;
	__u32 state;

	sock = bpf_skc_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!sock)
		return 0;
	state = sock->state;
	bpf_sk_release(sock);
	return state == BPF_TCP_LISTEN ? 0 : state;
}

static __always_inline bool is_logger(__be32 address)
{
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < MAX_LOGGERS; i++)
		if (i < LOGGER_COUNT && address == bswap32(LOGGERS[i].ip))
			return true;
	return false;
}

SEC("xdp") int midstream_sensor(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	const __u32 to = bswap32(HARDWORKER_IP);
	struct headers *h = data;
	struct tcphdr *tcp = tcp_header(h);
	struct iphdr *ip = ip_header(h);
	__u32 through, direct, from, change;

	if ((void *)(h + 1) > end || ETHER_TYPE(&h->eth) != bswap16(ETH_P_IP) ||
	    IP_VERSION_LENGTH(ip) != IP_VERSION_4_NO_OPTIONS || !is_logger(ip->saddr) ||
	    ip->protocol != IPPROTO_TCP || ip->frag_off & IP_FRAGMENT_OFFSET || !is_marked_port(tcp->source))
		return XDP_PASS;
	from = ip->saddr;
	through = socket_state(ctx, h, to);
	direct = socket_state(ctx, h, from);
	if (!through || (direct && (direct != BPF_TCP_TIME_WAIT || through == BPF_TCP_TIME_WAIT)))
		return XDP_PASS;

	ip->saddr = to;
	change = checksum_change(from, to);
	ip->check = changed_checksum(ip->check, change);
	tcp->check = changed_checksum(tcp->check, change);
	return XDP_PASS;
}

char _license[] SEC("license") = "GPL";

/* SPDX-License-Identifier: GPL-2.0-only */
/* A marked packet: what the program has read of it, whether it came unharmed, and its way on. */
#ifndef MIDSTREAM_MARKED_H
#define MIDSTREAM_MARKED_H

#include "checksum.h"
#include "connection.h"
#include "packet.h"
#include "settings.h"

/* One marked packet, its lengths checked against the frame. */
struct packet {
	struct headers *headers;
	struct connection_key key;
	__u64 time;	      /* set where it is needed */
	__u32 sequence;	      /* this and the next two in host byte order */
	__u32 acknowledgement;
	__u32 timestamp;      /* TSval; 0: none */
	__u32 payload_offset; /* in the frame */
	__u32 length;	      /* of the payload */
	__u8 flags;
};

static __always_inline bool verified(struct xdp_md *ctx, const struct packet *p, __u64 payload_sum)
{
	return !settings.check || is_intact(ctx, p->length, payload_sum);
}

/* On to the logger of that position, or, unchanged, to this host's own stack. */
static __always_inline int forward(struct headers *h, __u32 destination)
{
	/* With one logger its address is a constant. A position that no logger has any more is the first's, which refuses. */
	const struct logger *logger = &LOGGERS[destination < LOGGER_COUNT ? destination : 0];
	struct tcphdr *tcp = tcp_header(h);
	struct iphdr *ip = ip_header(h);
	__u32 change;

	if (destination == HERE)
		return XDP_PASS;
	change = checksum_change(bswap32(HARDWORKER_IP), bswap32(logger->ip));
	set_mac(h->eth.h_source, HARDWORKER_MAC);
	set_mac(h->eth.h_dest, logger->mac);
	ip->daddr = bswap32(logger->ip);
	ip->check = changed_checksum(ip->check, change);
	/* The address is in TCP's pseudo-header too (RFC 9293, section 3.1). */
	tcp->check = changed_checksum(tcp->check, change);
	return XDP_TX;
}

/* Make a packet a segment to a sensor, in the name of whoever its connection goes to. */
static __always_inline void answer(struct headers *h, const struct connection_key *to, const __u8 *mac, __u32 sequence,
				   __u32 acknowledgement, __u8 flags)
{
	struct tcphdr *tcp = tcp_header(h);
	struct iphdr *ip = ip_header(h);
	__u64 sum;

	set_mac(h->eth.h_dest, mac);
	set_mac(h->eth.h_source, HARDWORKER_MAC);
	ip->tos &= TOS_WITHOUT_ECN;
	ip->tot_len = bswap16(sizeof(*ip) + sizeof(*tcp));
	ip->saddr = bswap32(HARDWORKER_IP);
	ip->daddr = to->ip;
	ip->check = 0;
	ip->check = checksum_of(sum_of_words(ip, sizeof(*ip) / 4));
	tcp->source = bswap16(MARK_PORT);
	tcp->dest = to->port;
	tcp->seq = bswap32(sequence);
	tcp->ack_seq = bswap32(acknowledgement);
	((__be16 *)tcp)[6] = bswap16(sizeof(*tcp) / 4 << 12 | flags);
	tcp->window = 0;
	tcp->urg_ptr = 0;
	tcp->check = 0;
	sum = sum_of_words(&ip->saddr, 2) + bswap16(IPPROTO_TCP) + bswap16(sizeof(*tcp));
	tcp->check = checksum_of(sum + sum_of_words(tcp, sizeof(*tcp) / 4));
}

/* Answer data that no connection is known for with the reset that this host's stack would send. The stack itself must not
 * see it: it may have a connection with these numbers, and would acknowledge what is not held.
 */
static __always_inline int refuse(struct packet *p)
{
	answer(p->headers, &p->key, p->headers->eth.h_source, p->acknowledgement, 0, TCP_RST);
	return XDP_TX;
}

#endif

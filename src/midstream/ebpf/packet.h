/* SPDX-License-Identifier: GPL-2.0-only */
/* The headers of a TCP packet, where they lie, and how an address in them is replaced. */
#ifndef MIDSTREAM_PACKET_H
#define MIDSTREAM_PACKET_H

#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "bpf.h"
#include "const.h"

/* Ethernet, IPv4 without options, TCP without options: what every packet of ours has at least. */
struct headers {
	struct ethhdr eth;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

/* Their parts, to be read a word at a time: what is a member of a packed struct the compiler takes byte by byte.
 * The kernel lets a program of these architectures load a word from wherever it lies in a packet.
 */
static __always_inline struct iphdr *ip_header(const struct headers *h)
{
	return (void *)&h->ip;
}

static __always_inline struct tcphdr *tcp_header(const struct headers *h)
{
	return (void *)&h->tcp;
}

/* In one byte of the IPv4 header: version 4, five 32-bit words, that is no options. */
#define IP_VERSION_4_NO_OPTIONS 0x45
#define IP_VERSION_LENGTH(ip) (*(const __u8 *)(ip))
/* RFC 791, in network byte order. */
#define IP_MORE_FRAGMENTS bswap16(0x2000)
#define IP_FRAGMENT_OFFSET bswap16(0x1fff)
/* RFC 3168: the two low bits of the old TOS byte belong to congestion notification, and routers set them. */
#define TOS_WITHOUT_ECN 0xfc

/* The type of an Ethernet frame, read at once. */
#define ETHER_TYPE(eth) (*(const __be16 *)&(eth)->h_proto)

/* The flags byte of the TCP header (RFC 9293, section 3.1), read at once. */
#define TCP_FLAGS(tcp) (((const __u8 *)(tcp))[13])
#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

/* The payload of the longest packet that the MTU admits. */
#define MAX_PAYLOAD (MTU - sizeof(struct iphdr) - sizeof(struct tcphdr))

/* The layout in which RFC 7323, appendix A recommends to send timestamps, and every stack does:
 * no-operation, no-operation, kind 8, length 10, TSval, TSecr.
 */
#define TIMESTAMP_OPTION bswap32(0x0101080a)

static __always_inline bool is_marked(__u8 tos)
{
	return MARK_TOS == 0 || (tos & TOS_WITHOUT_ECN) == MARK_TOS;
}

static __always_inline bool same_mac(const unsigned char *a, const unsigned char *b)
{
	return *(const __u16 *)a == *(const __u16 *)b && *(const __u16 *)(a + 2) == *(const __u16 *)(b + 2) &&
	       *(const __u16 *)(a + 4) == *(const __u16 *)(b + 4);
}

/* A constant address into a packet. */
static __always_inline void set_mac(unsigned char *to, const unsigned char *mac)
{
	*(__u16 *)to = *(const __u16 *)mac;
	*(__u32 *)(to + 2) = *(const __u32 *)(mac + 2);
}

/* A step nearer to 16 bits. */
static __always_inline __u32 folded(__u32 sum)
{
	return (sum & 0xffff) + (sum >> 16);
}

/* RFC 1624, equation 3, over a whole 32-bit address: check' = ~(~check + ~from + to). Here is ~from + to, */
static __always_inline __u32 checksum_change(__u32 from, __u32 to)
{
	return folded(folded((__u16)~from + (__u16)~(from >> 16) + (to & 0xffff) + (to >> 16)));
}

/* and here the rest. */
static __always_inline __u16 changed_checksum(__u16 check, __u32 change)
{
	return ~folded((__u16)~check + change);
}

#endif
